// A step of a Rosenbrock method on the way back.
//
// Each stage hands its cotangent through the transposed matrix on to the slope there and to the stages before it. The
// matrix, the same for all stages, gathers a cotangent of J, and the function's derivatives at the start hand that on.

template <int W> DEVICE void Backward<W>::pull_step(
    const D& t0, const D& t1, const R* y0, const R*, const R (*c)[N], bool inside) {
  const R h = to_real<W>(t1 - t0), scale = real(GAMMA) * h;
  R k[SLOPES][N], v[STAGES][N], g[N], to_y[N], to_t[1];
  Start<W> start;
  Factors<W> factors;
  begin_step<W>(t0, y0, in, k[0], start);
  stages<W>(t0, t1, y0, in, k, start, factors);
  for (int j = 0; j < STAGES; ++j)
    for (int e = 0; e < N; ++e) {
      v[j][e] = real(B[j]) * bar[e];
      if (inside) for (int d = 0; d < DEGREE; ++d) v[j][e] += real(DENSE[j][d]) * c[d][e];
    }
  for (int i = STAGES - 1; i >= 0; --i) {
    factors.solve_transposed(v[i]);
    for (int e = 0; e < N; ++e) g[e] = scale * v[i][e];
    if (i == 0) break;
    R y[N];
    stage_state<W>(i, y0, k, y);
    pull_field<W>(to_real<W>(stage_time<W>(i, t0, t1)), y, in, g, to_y, to_t, sums, wide, row_sums);
    if (TIMED) add_to_time(NODES[i], to_t[0]);
    for (int e = 0; e < N; ++e) {
      bar[e] += to_y[e];
      for (int j = 0; j < i; ++j) v[j][e] += real(A[i][j]) * to_y[e] + real(COUPLING[i][j]) * v[i][e];
    }
  }
  R of_derivatives[COLUMNS * N] = {};  // those by the elements of the state, then the one by time
  for (int n = 0; n < ENTRIES; ++n) {
    R sum = up<W>(0);
    for (int i = 0; i < STAGES; ++i) sum += v[i][ENTRY_ROW[n]] * k[i + 1][ENTRY_COLUMN[n]];
    of_derivatives[ENTRY_COLUMN[n] * N + ENTRY_ROW[n]] = scale * sum;
  }
  if (MOVES)
    for (int e = 0; e < N; ++e) {
      R sum = up<W>(0);
      for (int i = 0; i < STAGES; ++i) sum += real(BY_TIME[i]) * v[i][e];
      of_derivatives[(COLUMNS - 1) * N + e] = scale * h * sum;
    }
  pull_derivatives<W>(to_real<W>(t0), y0, in, g, of_derivatives, to_y, to_t, sums, wide, row_sums);
  for (int e = 0; e < N; ++e) bar[e] += to_y[e];
  if (!TIMED) return;
  add_to_time(0, to_t[0]);
  for (int e = 0; e < N; ++e)
    for (int i = 0; i < STAGES; ++i) {
      // What the size of the step is multiplied by is what a stage makes of it, without those before.
      R by_size = k[i + 1][e];
      for (int j = 0; j < i; ++j) by_size -= real(COUPLING[i][j]) * k[j + 1][e];
      by_size /= h;
      if (MOVES) by_size += real(BY_TIME[i]) * scale * start.by_time[e];
      add_to_size(v[i][e] * by_size);
    }
  if (inside)
    for (int d = 0; d < DEGREE; ++d)
      for (int e = 0; e < N; ++e) {
        within[d][e] = up<W>(0);
        for (int j = 0; j < STAGES; ++j) within[d][e] += real(DENSE[j][d]) * k[j + 1][e];
      }
}
