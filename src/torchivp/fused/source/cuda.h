// Where kernels run on CUDA: a row to a thread.

#ifdef SOLVES
extern "C" __global__ void prepare(const Solve s) { once(s); }
extern "C" __global__ void solve(const Solve s) {
  const int64_t row = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= s.count) return;
  Rows<1> rows(s);
  rows.run(row, row + 1);
}
#endif

#ifdef PULLS
extern "C" __global__ void prepare(const Pull s) { once(s); }
extern "C" __global__ void pull(const Pull s) {
  const int64_t row = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= s.rows) return;
  Backward<1> back(s);
  back.run(row, row + 1, s.partial + row * SUMS_USED);
}
#endif
