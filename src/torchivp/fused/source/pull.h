// The way back: the steps of a record from the last to the first, each row on its own, by the discrete adjoint.
//
// A step's stages are found once more from the state at its start; how a step is taken back is the method's own.

template <int W> struct Backward {
  typedef typename Lanes<W>::R R;
  typedef typename Lanes<W>::D D;
  typedef typename Lanes<W>::M M;
  typedef typename Lanes<W>::MD MD;

  const Pull& s;
  In<W> in;
  R bar[N];            // the cotangent of the state at which a row has arrived
  R carried[N];        // that of the slope that was handed on from the step before
  R sums[LANE_SUMS];   // those of the inputs that all rows share
#ifdef __CUDACC_RTC__
  Wide<W> wide;        // those of matrices among them, which are totals at once
#else
  R wide[WIDE<W>];     // those of matrices among them, which are summed over lanes at once
#endif
  R row_sums[ROW_SUMS];
  // Where times move: the cotangents of the ends of a step, and the polynomials of the state within it.
  R of_start, of_end, within[TIMED ? DEGREE : 1][N];
  MD active;
  int64_t row[W], step_number[W], next[W];

  Totals total;  // where the sums are written

#ifdef __CUDACC_RTC__
  DEVICE Backward(const Pull& pull, Totals total) : s(pull), in(pull), wide(total + LANES_USED), total(total) {
    for (int e = 0; e < SUMS_USED - LANES_USED; ++e) wide[e] = 0;
#else
  DEVICE Backward(const Pull& pull, Totals total) : s(pull), in(pull), total(total) {
    for (int e = 0; e < WIDE<W>; ++e) wide[e] = up<W>(0);
#endif
    for (int e = 0; e < LANE_SUMS; ++e) sums[e] = up<W>(0);
  }

  DEVICE double end_of(int l) const { return s.ends[row[l] * (s.capacity + 1) + step_number[l]]; }
  DEVICE const real* state_of(int l) const {
    return s.states + (row[l] * (s.capacity + 1) + step_number[l]) * N;
  }
  DEVICE double wanted(int l) const { return s.wanted[row[l] * s.wanted_stride + next[l]]; }
  DEVICE const real* grad_of(int l) const { return s.grad_values + (row[l] * s.outputs + next[l]) * N; }

  // Adds to the cotangent of the time at which the step that is taken back begins, or of that at which it ends.
  DEVICE void add_to_end(int l, int which, double grad) {
    s.grad_ends[row[l] * (s.capacity + 1) + step_number[l] + which] += grad;
  }

  DEVICE void add(int l, const real* grad) {
    for (int e = 0; e < N; ++e) put(bar[e], l, at<W>(bar[e], l) + grad[e]);
  }

  // The cotangents of what was kept of the state at which a row has arrived.
  DEVICE void meet(int l) {
    if (s.grad_states) add(l, s.grad_states + (row[l] * (s.capacity + 1) + step_number[l]) * N);
    while (next[l] >= 0 && wanted(l) == end_of(l)) {
      add(l, grad_of(l));
      --next[l];
    }
  }

  DEVICE void begin_lane(int l, int64_t i) {
    row[l] = i;
    step_number[l] = s.steps[i];
    next[l] = s.outputs - 1;
    for (int e = 0; e < N; ++e) {
      put(bar[e], l, s.grad_last ? s.grad_last[i * N + e] : real(0));
      put(carried[e], l, real(0));
    }
    for (int e = 0; e < ROW_SUMS; ++e) put(row_sums[e], l, real(0));
    in.load(s, l, i);
    set_lane<W>(active, l, true);
    // Outputs that were not reached are NaN, whatever anything is.
    const double last = end_of(l);
    const bool onward = s.end[i * s.span_stride] >= s.start[i * s.span_stride];
    while (next[l] >= 0 && !(onward ? wanted(l) <= last : wanted(l) >= last)) --next[l];
    meet(l);
    if (step_number[l] == 0) finish(l);
  }

  DEVICE void finish(int l) {
    const int64_t i = row[l];
    for (int e = 0; e < N; ++e) s.grad_y0[i * N + e] = at<W>(bar[e], l);
    for (int e = 0; e < ROW_SUMS_USED; ++e) s.grad_rows[i * ROW_SUMS_USED + e] = at<W>(row_sums[e], l);
    set_lane<W>(active, l, false);
    for (int e = 0; e < N; ++e) put(bar[e], l, real(0));
  }

  // One step back in every row.
  DEVICE void iterate() {
    D t0 = up_d<W>(0), t1 = up_d<W>(1);
    R y0[N], slope[N], c[DEGREE][N], of_outputs[N];
    for (int e = 0; e < N; ++e) slope[e] = of_outputs[e] = up<W>(0);
    for (int d = 0; d < DEGREE; ++d)
      for (int e = 0; e < N; ++e) c[d][e] = up<W>(0);
    bool inside = false;
    int64_t latest[W];
    for (int l = 0; l < W; ++l) {
      latest[l] = next[l];
      // A lane at rest goes over a step that was taken, with cotangents of zero.
      const bool moves = is_set<W>(active, l);
      if (moves) --step_number[l];
      put(t0, l, end_of(l));
      const real* start = state_of(l);
      for (int e = 0; e < N; ++e) put(y0[e], l, start[e]);
      if (PREDICTS && step_number[l] > 0)
        for (int e = 0; e < N; ++e) put(slope[e], l, s.slopes[(start - s.states) + e]);
      put(t1, l, s.ends[row[l] * (s.capacity + 1) + step_number[l] + 1]);
      if (moves) inside |= outputs_within(l, at_d<W>(t0, l), at_d<W>(t1, l), c, of_outputs);
    }
    if (TIMED) of_start = of_end = up<W>(0);
    pull_step(t0, t1, y0, slope, c, inside);
    for (int e = 0; e < N; ++e) bar[e] += of_outputs[e];
    for (int l = 0; l < W; ++l) {
      if (!is_set<W>(active, l)) continue;
      if (TIMED) move_times(l, at_d<W>(t0, l), at_d<W>(t1, l), latest[l]);
      meet(l);
      if (step_number[l] == 0) finish(l);
    }
  }

  DEVICE bool outputs_within(int l, double t0, double t1, R (*c)[N], R* of_outputs) {
    bool some = false;
    while (next[l] >= 0 && (t1 > t0 ? wanted(l) > t0 : wanted(l) < t0)) {
      const real theta = real((wanted(l) - t0) / (t1 - t0));
      const real* grad = grad_of(l);
      for (int e = 0; e < N; ++e) {
        put(of_outputs[e], l, at<W>(of_outputs[e], l) + grad[e]);
        real power = theta;
        for (int d = 0; d < DEGREE; ++d, power *= theta) put(c[d][e], l, at<W>(c[d][e], l) + power * grad[e]);
      }
      --next[l];
      some = true;
    }
    return some;
  }

  // The cotangents of the ends of a step, and of the times of the outputs within it, from the one numbered `latest` on.
  DEVICE void move_times(int l, double t0, double t1, int64_t latest) {
    double start = at<W>(of_start, l), end = at<W>(of_end, l);
    for (int64_t i = latest; i > next[l]; --i) {
      const int64_t place = row[l] * s.outputs + i;
      const double h = t1 - t0, t = s.wanted[row[l] * s.wanted_stride + i] - t0;
      const real theta = real(t / h);
      real of_theta = 0, power = 1;
      for (int d = 0; d < DEGREE; ++d, power *= theta)
        for (int e = 0; e < N; ++e) of_theta += (d + 1) * power * at<W>(within[d][e], l) * s.grad_values[place * N + e];
      const double of_time = of_theta / h;
      s.grad_wanted[place] += of_time;
      end -= of_time * (t / h);
      start -= of_time * (1 - t / h);
    }
    add_to_end(l, 0, start);
    add_to_end(l, 1, end);
  }

  // The cotangent of the size of a step.
  DEVICE void add_to_size(const R& grad) {
    of_end += grad;
    of_start -= grad;
  }

  // That of the time at a node.
  DEVICE void add_to_time(double node, const R& grad) {
    of_end += real(node) * grad;
    of_start += real(1 - node) * grad;
  }

  // Takes the cotangents over a step: `bar` from its end to its start.
  DEVICE void pull_step(
      const D& t0, const D& t1, const R* y0, const R* slope, const R (*c)[N], bool inside);

  // Whether a row has come to its first step, which starts from its own slope.
  DEVICE bool any_at_start() const {
    bool some = false;
    for (int l = 0; l < W; ++l) some |= step_number[l] == 0;
    return some;
  }

  // The first slope of a step was the last of the step before, but for the first step.
  DEVICE void hand_over(R* kbar) {
    for (int l = 0; l < W; ++l) {
      const bool first = step_number[l] == 0;
      for (int e = 0; e < N; ++e) {
        put(carried[e], l, first ? real(0) : at<W>(kbar[e], l));
        if (!first) put(kbar[e], l, real(0));
      }
    }
  }

  // A lane at rest goes over the first step of its row once more. A row that took none, whose state may not even be
  // finite, lets its lane go over a step of another.
  DEVICE void stand_by(int l) {
    int other = 0;
    while (!is_set<W>(active, other)) ++other;
    row[l] = row[other];
    step_number[l] = 0;
    in.load(s, l, row[l]);
  }

  // Rows from `first` to `beyond`.
  DEVICE void run(int64_t first, int64_t beyond) {
    active = MD{};
    for (int e = 0; e < ROW_SUMS; ++e) row_sums[e] = up<W>(0);
    for (int l = 0; l < W; ++l) {
      begin_lane(l, first + l < beyond ? first + l : first);
      if (first + l < beyond) continue;
      set_lane<W>(active, l, false);
      step_number[l] = 0;
      for (int e = 0; e < N; ++e) put(bar[e], l, real(0));
    }
    int64_t waiting = first + W;
    for (;;) {
      for (int l = 0; l < W; ++l)
        while (!is_set<W>(active, l) && waiting < beyond) begin_lane(l, waiting++);
      if (!any<W>(active)) break;
      for (int l = 0; l < W; ++l)
        if (!is_set<W>(active, l) && s.steps[row[l]] == 0) stand_by(l);
      iterate();
    }
    add_up<W>(sums, wide, total);
  }
};
