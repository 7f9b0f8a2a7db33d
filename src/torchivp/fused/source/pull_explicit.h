// A step of an explicit method on the way back.
//
// Each stage hands the cotangent of its slope on to the stages before it and to the state, by the transposed Jacobian of
// the function there.

template <int W> DEVICE void Backward<W>::pull_step(
    const D& t0, const D& t1, const R* y0, const R* slope, const R (*c)[N], bool inside) {
  const R h = to_real<W>(t1 - t0);
  const int slopes = inside ? SLOPES : FSAL ? STAGES - 1 : STAGES;
  R y[SLOPES][N], k[SLOPES][N], kbar[SLOPES][N], to_y[N], to_t[1];
  const bool any_first = !PREDICTS || any_at_start();
  for (int i = 0; i < slopes; ++i) {
    for (int e = 0; e < N; ++e) {
      R sum = up<W>(0);
      for (int j = 0; j < i; ++j) sum += real(A[i][j]) * k[j][e];
      y[i][e] = y0[e] + h * sum;
    }
    if (i > 0 || any_first) field<W>(to_real<W>(stage_time<W>(i, t0, t1)), y[i], in, k[i]);
    if (PREDICTS && i == 0)
      for (int l = 0; l < W; ++l)
        if (step_number[l] > 0)
          for (int e = 0; e < N; ++e) put(k[0][e], l, at<W>(slope[e], l));
  }
  for (int j = 0; j < SLOPES; ++j)
    for (int e = 0; e < N; ++e) {
      R sum = j < STAGES ? real(B[j]) * bar[e] : up<W>(0);
      if (inside) for (int d = 0; d < DEGREE; ++d) sum += real(DENSE[j][d]) * c[d][e];
      kbar[j][e] = h * sum;
      if (TIMED && j < slopes) add_to_size(sum * k[j][e]);
    }
  if (TIMED && inside)
    for (int d = 0; d < DEGREE; ++d)
      for (int e = 0; e < N; ++e) {
        R sum = up<W>(0);
        for (int j = 0; j < SLOPES; ++j) sum += real(DENSE[j][d]) * k[j][e];
        within[d][e] = h * sum;
      }
  if (PREDICTS) for (int e = 0; e < N; ++e) kbar[STAGES - 1][e] += carried[e];
  for (int i = slopes - 1; i >= 0; --i) {
    if (PREDICTS && i == 0) hand_over(kbar[0]);
    if (i == 0 && !any_first) break;
    pull_field<W>(to_real<W>(stage_time<W>(i, t0, t1)), y[i], in, kbar[i], to_y, to_t, sums, wide, row_sums);
    if (TIMED) add_to_time(NODES[i], to_t[0]);
    for (int e = 0; e < N; ++e) {
      bar[e] += to_y[e];
      for (int j = 0; j < i; ++j) {
        kbar[j][e] += h * real(A[i][j]) * to_y[e];
        if (TIMED) add_to_size(real(A[i][j]) * k[j][e] * to_y[e]);
      }
    }
  }
}
