// The step of a Rosenbrock method, as methods/ode/rosenbrock.py has it: with J and T, the derivatives of the function by
// the state and the time at the start, the stages u_i solve
//   (I - h gamma J) u_i = h gamma f(t_i, y0 + sum_j A_ij u_j) + sum_j COUPLING_ij u_j + h^2 gamma BY_TIME_i T
// and the step ends at y0 + sum_i B_i u_i. k[0] is the slope at the start, k[i + 1] the stage u_i.
//
// Tangents of the state obey what these equations become when they are differentiated along a direction, with the step
// size held: the same matrix, f replaced by its change, and h gamma times the change of
//   J u_i + h BY_TIME_i T
// at the start with u_i held, which `bend` computes from second derivatives of the function.

// What steps start from besides the slope: the entries of J that vary, and T.
template <int W> struct Start {
  typename Lanes<W>::R entries[ENTRIES > 0 ? ENTRIES : 1], by_time[STATES];
};

template <int W> FUSED void begin_step(
    const typename Lanes<W>::D& t, const typename Lanes<W>::R* y, const In<W>& in, typename Lanes<W>::R* slope,
    Start<W>& start) {
#ifdef TANGENTS
  field<W>(to_real<W>(t), y, in, slope);  // the change of the slope; the slope itself comes with the derivatives
#endif
  derivatives<W>(to_real<W>(t), y, in, slope, start.entries, start.by_time);
}

// The factors of a matrix whose rows have been exchanged so that the pivots are the largest in their columns; in each
// lane its own. A matrix that is singular or not finite gives solutions that are not finite.
template <int W> struct Factors {
  typedef typename Lanes<W>::R R;
  typedef typename Lanes<W>::I I;

  R lu[STATES][STATES], inverse[STATES];  // those of the pivots
  R poison;                               // zero, or not a number where a pivot is not finite
  I from[STATES];                         // where the rows were
  bool exchanged;

  // I - scale J.
  DEVICE void set(const R& scale, const Start<W>& start) {
    for (int i = 0; i < STATES; ++i)
      for (int j = 0; j < STATES; ++j) lu[i][j] = up<W>(i == j);
    for (int n = 0; n < ENTRIES; ++n) lu[ENTRY_ROW[n]][ENTRY_COLUMN[n]] -= scale * start.entries[n];
    for (int n = 0; n < FIXED; ++n) lu[FIXED_ROW[n]][FIXED_COLUMN[n]] -= scale * FIXED_VALUE[n];
    for (int i = 0; i < STATES; ++i) from[i] = up_i<W>(i);
    exchanged = false;
    poison = up<W>(0);
  }

  DEVICE void factorise() {
    for (int k = 0; k < STATES; ++k) {
      exchange(k);
      inverse[k] = up<W>(1) / lu[k][k];
      poison += real(0) * lu[k][k];
      for (int i = k + 1; i < STATES; ++i) {
        if (!any<W>(lu[i][k] != 0)) continue;  // as in most places of a sparse matrix
        const R l = lu[i][k] * inverse[k];
        lu[i][k] = l;
        for (int j = k + 1; j < STATES; ++j) lu[i][j] -= l * lu[k][j];
      }
    }
  }

  // Bring the largest number of column k at or below the diagonal to it.
  DEVICE void exchange(int k) {
    R largest = f_abs<W>(lu[k][k]);
    I at = up_i<W>(k);
    bool some = false;
    for (int i = k + 1; i < STATES; ++i) {
      const R size = f_abs<W>(lu[i][k]);
      const typename Lanes<W>::M larger = size > largest;
      if (!any<W>(larger)) continue;
      some = true;
      largest = sel(larger, size, largest);
      at = sel(widen_i<W>(larger), up_i<W>(i), at);
    }
    if (!some) return;
    exchanged = true;
    for (int i = k + 1; i < STATES; ++i) {
      const auto here = at == up_i<W>(i);
      if (!any<W>(here)) continue;
      const typename Lanes<W>::M m = narrow_i<W>(here);
      for (int j = 0; j < STATES; ++j) {
        const R upper = lu[k][j];
        lu[k][j] = sel(m, lu[i][j], upper);
        lu[i][j] = sel(m, upper, lu[i][j]);
      }
      const I upper = from[k];
      from[k] = sel(here, from[i], upper);
      from[i] = sel(here, upper, from[i]);
    }
  }

  DEVICE void solve(R* x) const {
    R b[STATES];
    for (int i = 0; i < STATES; ++i) b[i] = exchanged ? gather_lanes<W>(x, from[i]) : x[i];
    for (int i = 1; i < STATES; ++i)
      for (int j = 0; j < i; ++j) b[i] -= lu[i][j] * b[j];
    for (int i = STATES - 1; i >= 0; --i) {
      for (int j = i + 1; j < STATES; ++j) b[i] -= lu[i][j] * x[j];
      x[i] = b[i] * inverse[i];
    }
  }

  DEVICE void solve_transposed(R* x) const {
    R b[STATES];
    for (int i = 0; i < STATES; ++i) {
      b[i] = x[i];
      for (int j = 0; j < i; ++j) b[i] -= lu[j][i] * b[j];
      b[i] *= inverse[i];
    }
    for (int i = STATES - 2; i >= 0; --i)
      for (int j = i + 1; j < STATES; ++j) b[i] -= lu[j][i] * b[j];
    for (int i = 0; i < STATES; ++i)
      if (exchanged) scatter<W, false>(x, from[i], b[i]); else x[i] = b[i];
  }
};

// The state of a stage.
template <int W> FUSED void stage_state(
    int i, const typename Lanes<W>::R* y0, const typename Lanes<W>::R (*k)[N], typename Lanes<W>::R* y) {
  for (int e = 0; e < N; ++e) {
    y[e] = y0[e];
    for (int j = 0; j < i; ++j) y[e] += real(A[i][j]) * k[j + 1][e];
  }
}

template <int W> FUSED void stages(
    const typename Lanes<W>::D& t0, const typename Lanes<W>::D& t1, const typename Lanes<W>::R* y0, const In<W>& in,
    typename Lanes<W>::R (*k)[N], const Start<W>& start, Factors<W>& factors) {
  typedef typename Lanes<W>::R R;
  const R h = to_real<W>(t1 - t0), scale = real(GAMMA) * h;
  factors.set(scale, start);
  factors.factorise();
  for (int i = 0; i < STAGES; ++i) {
    R* u = k[i + 1];
    if (i == 0) {
      for (int e = 0; e < N; ++e) u[e] = scale * k[0][e] + factors.poison;
    } else {
      R y[N], slope[N];
      stage_state<W>(i, y0, k, y);
      field<W>(to_real<W>(stage_time<W>(i, t0, t1)), y, in, slope);
      for (int e = 0; e < N; ++e) {
        u[e] = scale * slope[e];
        for (int j = 0; j < i; ++j) u[e] += real(COUPLING[i][j]) * k[j + 1][e];
      }
    }
    if (MOVES) for (int e = 0; e < STATES; ++e) u[e] += real(BY_TIME[i]) * (scale * h * start.by_time[e]);
    factors.solve(u);
#ifdef TANGENTS
    if (BENDS) {
      R bent[N];
      bend<W>(to_real<W>(t0), y0, in, u, real(BY_TIME[i]) * h, bent);
      for (int e = STATES; e < N; ++e) u[e] += scale * bent[e];
    }
    for (int e = STATES; e < N; e += STATES) factors.solve(u + e);
#endif
  }
}

template <int W> FUSED void step(
    const typename Lanes<W>::D& t0, const typename Lanes<W>::D& t1, const typename Lanes<W>::R* y0, const In<W>& in,
    typename Lanes<W>::R (*k)[N], const Start<W>& start, typename Lanes<W>::R* y1, typename Lanes<W>::R* error) {
  Factors<W> factors;
  stages<W>(t0, t1, y0, in, k, start, factors);
  for (int e = 0; e < N; ++e) {
    y1[e] = y0[e];
    for (int j = 0; j < STAGES; ++j) y1[e] += real(B[j]) * k[j + 1][e];
  }
  for (int e = 0; e < STATES; ++e) {
    error[e] = up<W>(0);
    for (int j = 0; j < STAGES; ++j) error[e] += real(ERROR[j]) * k[j + 1][e];
  }
}

template <int W> FUSED void extra_slopes(
    const typename Lanes<W>::D&, const typename Lanes<W>::D&, const typename Lanes<W>::R*, const In<W>&,
    typename Lanes<W>::R (*)[N]) {}

// The state within a step is y0 + c[0] theta + c[1] theta^2 + ...
template <int W> FUSED void polynomials(
    const typename Lanes<W>::R&, const typename Lanes<W>::R (*k)[N], typename Lanes<W>::R (*c)[N]) {
  for (int d = 0; d < DEGREE; ++d)
    for (int e = 0; e < N; ++e) {
      c[d][e] = up<W>(0);
      for (int j = 0; j < STAGES; ++j) c[d][e] += real(DENSE[j][d]) * k[j + 1][e];
    }
}
