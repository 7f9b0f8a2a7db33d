// Where kernels run on CUDA: a row to a thread, and on the way back a block of rows, so that there are fewer sums.

#if __CUDA_ARCH__ >= 700
#define THIS_CALL const __grid_constant__  // no thread copies it
#else
#define THIS_CALL const
#endif
#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS)

#ifdef SOLVES
KERNEL prepare(THIS_CALL Solve s) { once(s); }
KERNEL solve(THIS_CALL Solve s) {
  const int64_t row = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= s.count) return;
  Rows<1> rows(s);
  rows.run(row, row + 1);
}
#endif

#ifdef PULLS
KERNEL prepare(THIS_CALL Pull s) { once(s); }
KERNEL pull(THIS_CALL Pull s) {
  const int64_t b = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, first = b * s.block;
  if (first >= s.rows) return;
  Backward<1> back(s, Totals{s.partial + b, (s.rows + s.block - 1) / s.block});
  back.run(first, first + s.block < s.rows ? first + s.block : s.rows);
}
#endif
