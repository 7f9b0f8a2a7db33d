// Sums over lanes of products of columns and rows: the gradients of matrices of weights.
//
// A sum over rows of problems for each element would take as many additions across lanes as there are elements. Turned
// round, so that a register holds W elements of a row of the matrix, the lanes are summed up one after the other.

#ifdef __CUDACC_RTC__
// Sums of a thread of CUDA lie in the memory of all, so that matrices of any size have room: each side by side with those
// of other threads, which come to it together.
struct Totals {
  real* first;
  int64_t threads;
  DEVICE Totals operator+(int e) const { return {first + e * threads, threads}; }
  DEVICE real& operator[](int e) const { return first[e * threads]; }
};
template <int W> using Wide = Totals;
#else
typedef real* Totals;
template <int W> using Wide = typename Lanes<W>::R*;
#endif

template <int W, int M, int COLUMNS> FUSED void outer(
    Wide<W> sum, const typename Lanes<W>::R* column, const typename Lanes<W>::R* row) {
  constexpr int PARTS_OF_ROW = (COLUMNS + W - 1) / W;
  typename Lanes<W>::R turned[W][PARTS_OF_ROW];
  for (int l = 0; l < W; ++l) turned[l][PARTS_OF_ROW - 1] = up<W>(0);
  for (int j = 0; j < COLUMNS; ++j)
    for (int l = 0; l < W; ++l) put(turned[l][j / W], j % W, at<W>(row[j], l));
  for (int i = 0; i < M; ++i) {
    typename Lanes<W>::R part[PARTS_OF_ROW];
    for (int p = 0; p < PARTS_OF_ROW; ++p) part[p] = sum[i * PARTS_OF_ROW + p];
    for (int l = 0; l < W; ++l) {
      const typename Lanes<W>::R factor = up<W>(at<W>(column[i], l));
      for (int p = 0; p < PARTS_OF_ROW; ++p) part[p] += factor * turned[l][p];
    }
    for (int p = 0; p < PARTS_OF_ROW; ++p) sum[i * PARTS_OF_ROW + p] = part[p];
  }
}

template <int W, int M, int COLUMNS> DEVICE void unpack(const typename Lanes<W>::R* sum, Totals total) {
  constexpr int PARTS_OF_ROW = (COLUMNS + W - 1) / W;
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < COLUMNS; ++j) total[i * COLUMNS + j] = at<W>(sum[i * PARTS_OF_ROW + j / W], j % W);
}
