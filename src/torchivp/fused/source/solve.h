// The loop over steps, of W rows side by side: as rows/loop.py has it, each row with its own time and step size.
//
// Of the N elements of a row the first STATES are the state, and the others, if any, its tangents: these are carried
// along, and neither their errors nor whether they are finite has a say in the steps.
//
// Where the loop RESUMES, rows/loop.py leads: rows come here from where that loop has brought them, take steps in which
// nothing but a step happens, and go back as soon as there is more to decide, with the attempt undone in which it showed.

enum Outcome : int64_t {
  UNDER_WAY, SUCCESS, OUT_OF_STEPS, NO_PROGRESS, NOT_FINITE, ERROR_NOT_FINITE, UNDERFLOW, TOLERANCE, STIFF,
  HELD,    // before a step that is for rows/loop.py to take
  FULL,    // before a step that the record has no room for
  CROSSED  // after a step with an event in it, or with one at its end, which changes the state or ends the row
};

template <int W> struct OneStep;  // of events.h

constexpr double STRETCH = 1.1, IN_SIGHT = 4.0;


template <int W> struct Rows {
  typedef typename Lanes<W>::R R;
  typedef typename Lanes<W>::D D;
  typedef typename Lanes<W>::M M;
  typedef typename Lanes<W>::MD MD;

  const Solve& s;
  In<W> in;
  R y[N], k[SLOPES][N], rtol[STATES], atol[STATES];
  Start<W> at_start;  // what the next step starts from besides k[0]
  D t, end, h, last, before, smallest;
  D ahead;  // the next output of each row, NaN after its last
  MD active, rejected, overflowed;
  MD anew;  // where the next step starts from what must be computed anew; a step that is tried again does not
  typename Lanes<W>::I steps, rejections, evaluations, jacobians, matrices;
  typename Lanes<W>::I against, wait;  // of the watch on stiffness
  D sign[SEEN], value[SEEN], level[SEEN];  // of the event functions
  int crossed[W];                          // which event there was in the last step, -1 for none
  double when[W], theta[W];                // when, and at which fraction of the step, of one at its end NaN
  int64_t row[W], next[W], position[W], place_of[W];
  bool known;    // whether k[0] is the slope at the start of the next step in all lanes
  bool through;  // whether rows have come to an end since lanes were last given out

  DEVICE explicit Rows(const Solve& solve) : s(solve), in(solve) {}

  DEVICE void begin_lane(int l, int64_t place) {
    const int64_t i = s.chosen ? s.chosen[place] : place;
    row[l] = i;
    place_of[l] = place;
    for (int e = 0; e < STATES; ++e) {
      put(rtol[e], l, s.rtol[i * s.rtol_stride + e]);
      put(atol[e], l, s.atol[i * s.atol_stride + e]);
    }
    in.load(s, l, i);
    set_lane<W>(active, l, true);
    set_lane<W>(anew, l, JACOBIAN || (RESUMES && !FSAL && !PREDICTS && !s.knows_slopes));
    if constexpr (RESUMES) {
      resume_lane(l, place);
      return;
    }
    next[l] = position[l] = 0;
    typename Lanes<W>::I* const counts[] = {&steps, &rejections, &evaluations, &jacobians, &matrices, &against, &wait};
    for (auto* count : counts) put(*count, l, int64_t(0));
    look_ahead(l);
    put(t, l, s.start[i * s.span_stride]);
    put(end, l, s.end[i * s.span_stride]);
    put(last, l, 1.0);
    put(before, l, 1.0);
    put(h, l, double(INFINITY));
    const double span = fabs(s.end[i * s.span_stride] - s.start[i * s.span_stride]);
    const double tiny = 2.2250738585072014e-308, of_span = 4.930380657631324e-32 * span;
    put(smallest, l, of_span > tiny ? of_span : tiny);
    for (int e = 0; e < N; ++e) put(y[e], l, s.y0[i * N + e]);
    set_lane<W>(rejected, l, false);
    set_lane<W>(overflowed, l, false);
    if (s.ends) {
      s.ends[i * (s.capacity + 1)] = s.start[i * s.span_stride];
      for (int e = 0; e < N; ++e) s.states[i * (s.capacity + 1) * N + e] = s.y0[i * N + e];
    }
  }

  // What is known of a row under way, in the order of fused/quiet.py.
  DEVICE void resume_lane(int l, int64_t place) {
    const int64_t m = s.count;
    typename Lanes<W>::I* const counts[] = {&steps, &rejections, &evaluations, &jacobians, &matrices, &against, &wait};
    for (int n = 0; n < 7; ++n) put(*counts[n], l, s.tallies[(n + 1) * m + place]);
    next[l] = s.tallies[8 * m + place];
    position[l] = s.tallies[9 * m + place];
    const int64_t flags = s.tallies[10 * m + place];
    set_lane<W>(rejected, l, flags & 1);
    set_lane<W>(overflowed, l, flags & 2);
    D* const marks[] = {&t, &h, &last, &before, &end, &smallest};
    for (int n = 0; n < 6; ++n) put(*marks[n], l, s.marks[n * m + place]);
    for (int e = 0; e < EVENTS; ++e) {
      put(sign[e], l, s.marks[(6 + e) * m + place]);
      put(value[e], l, s.marks[(6 + EVENTS + e) * m + place]);
      put(level[e], l, s.marks[(6 + 2 * EVENTS + e) * m + place]);
    }
    for (int e = 0; e < N; ++e) put(y[e], l, s.y0[place * N + e]);
    crossed[l] = -1;
    look_ahead(l);
  }

  // A row goes back to rows/loop.py.
  DEVICE void hold(int l, int64_t why) {
    const int64_t m = s.count, place = place_of[l];
    const int64_t flags = (is_set<W>(rejected, l) ? 1 : 0) + (is_set<W>(overflowed, l) ? 2 : 0);
    const int64_t counts[] = {why, ::place<W>(steps, l), ::place<W>(rejections, l), ::place<W>(evaluations, l),
                              ::place<W>(jacobians, l), ::place<W>(matrices, l), ::place<W>(against, l),
                              ::place<W>(wait, l), next[l], position[l], flags, crossed[l]};
    for (int n = 0; n < 12; ++n) s.tallies[n * m + place] = counts[n];
    const double marks[] = {at_d<W>(t, l), at_d<W>(h, l), at_d<W>(last, l), at_d<W>(before, l)};
    for (int n = 0; n < 4; ++n) s.marks[n * m + place] = marks[n];
    for (int e = 0; e < EVENTS; ++e) {
      s.marks[(6 + e) * m + place] = at_d<W>(sign[e], l);
      s.marks[(6 + EVENTS + e) * m + place] = at_d<W>(value[e], l);
      s.marks[(6 + 2 * EVENTS + e) * m + place] = at_d<W>(level[e], l);
    }
    if (crossed[l] >= 0) {
      s.marks[(6 + 3 * EVENTS) * m + place] = when[l];
      s.marks[(7 + 3 * EVENTS) * m + place] = theta[l];
    }
    for (int e = 0; e < N; ++e) {
      s.last[place * N + e] = at<W>(y[e], l);
      if (!JACOBIAN) s.slopes_now[place * N + e] = at<W>(k[0][e], l);
    }
    set_lane<W>(active, l, false);
    through = true;
  }

  // The same before an attempt whose evaluations are counted already.
  DEVICE void hold_undone(int l) {
    const int64_t began = is_set<W>(anew, l);
    put(evaluations, l, place<W>(evaluations, l) - (STAGES - 1) - began);
    if (JACOBIAN) {
      put(jacobians, l, place<W>(jacobians, l) - began);
      put(matrices, l, place<W>(matrices, l) - 1);
    }
    hold(l, HELD);
  }

  // A row goes no further.
  DEVICE void finish(int l, int64_t outcome, double taken = 0, double next_h = 0, double error = 0) {
    if constexpr (RESUMES) {
      hold(l, outcome == SUCCESS || outcome == STIFF || outcome == CROSSED ? outcome : int64_t(HELD));
      return;
    }
    const int64_t i = row[l];
    const int64_t counts[6] = {outcome, place<W>(steps, l), place<W>(rejections, l), place<W>(evaluations, l),
                               place<W>(jacobians, l), place<W>(matrices, l)};
    const double numbers[4] = {at_d<W>(t, l), taken, next_h, error};
    for (int n = 0; n < 6; ++n) s.counts[n * s.rows + i] = counts[n];
    for (int n = 0; n < 4; ++n) {
      s.numbers[n * s.rows + i] = numbers[n];
    }
    for (int e = 0; e < N; ++e) s.last[i * N + e] = at<W>(y[e], l);
    for (; next[l] < s.outputs; ++next[l])
      for (int e = 0; e < N; ++e) s.values[(i * s.outputs + next[l]) * N + e] = real(NAN);
    set_lane<W>(active, l, false);
    through = true;
  }

  DEVICE void look_ahead(int l) {
    double t = NAN;
    for (; next[l] < s.outputs; ++next[l]) {
      t = s.wanted[row[l] * s.wanted_stride + next[l]];
      if (t == t) break;
      for (int e = 0; e < N; ++e) s.values[(row[l] * s.outputs + next[l]) * N + e] = real(NAN);
    }
    put(ahead, l, t);
  }
  DEVICE void keep(int l, const real* value) {
    for (int e = 0; e < N; ++e) s.values[(row[l] * s.outputs + next[l]) * N + e] = value[e];
    ++next[l];
    look_ahead(l);
  }
  DEVICE void keep_state(int l) {  // where the output is the end of a step
    while (at_d<W>(ahead, l) == at_d<W>(t, l)) {
      real value[N];
      for (int e = 0; e < N; ++e) value[e] = at<W>(y[e], l);
      keep(l, value);
    }
  }

  // Rows that have been given a lane: their first outputs, slopes and step sizes.
  DEVICE void begin(const bool* fresh) {
    if constexpr (RESUMES) {
      resume(fresh);
      return;
    }
    bool some = false;
    for (int l = 0; l < W; ++l) {
      if (!fresh[l]) continue;
      keep_state(l);
      bool finite = true;
      for (int e = 0; e < STATES; ++e) finite &= at<W>(y[e], l) - at<W>(y[e], l) == 0;
      if (!finite) finish(l, NOT_FINITE);
      else if (at_d<W>(t, l) == at_d<W>(end, l)) finish(l, SUCCESS);
      else some = true;
    }
    if (!some) return;
    const bool estimates = ADAPTIVE && s.first_step < 0;
    R slope[N];
    if (!JACOBIAN || estimates) {
      field<W>(to_real<W>(t), y, in, slope);
      for (int l = 0; l < W; ++l)
        if (fresh[l])
          for (int e = 0; e < N; ++e) put(k[0][e], l, at<W>(slope[e], l));
      count(fresh, 1);
    }
    if (JACOBIAN) known = false;
    if (!ADAPTIVE) return;
    D size = up_d<W>(s.first_step);
    if (estimates) {
      size = first_size(slope);
      count(fresh, 1);
    }
    for (int l = 0; l < W; ++l) {
      if (!fresh[l] || !is_set<W>(active, l)) continue;
      double first = at_d<W>(size, l);
      if (first != first) { finish(l, NOT_FINITE); continue; }
      if (estimates) {
        const double least = fmax(16 * spacing(at_d<W>(t, l)), at_d<W>(smallest, l));
        first = fmax(first, least);
      }
      put(h, l, fmin(fmax(first, s.min_step), s.max_step));
    }
  }

  // The slopes of rows under way, where those are not handed on.
  DEVICE void resume(const bool* fresh) {
    if (JACOBIAN) {
      known = false;
    } else if (s.knows_slopes) {
      for (int l = 0; l < W; ++l)
        if (fresh[l])
          for (int e = 0; e < N; ++e) put(k[0][e], l, s.slopes_now[place_of[l] * N + e]);
    } else {
      R slope[N];
      field<W>(to_real<W>(t), y, in, slope);
      for (int l = 0; l < W; ++l)
        if (fresh[l])
          for (int e = 0; e < N; ++e) put(k[0][e], l, at<W>(slope[e], l));
      if (FSAL || PREDICTS) count(fresh, 1);
    }
  }

  DEVICE void count(const bool* which, int64_t more) {
    for (int l = 0; l < W; ++l) if (which[l]) put(evaluations, l, place<W>(evaluations, l) + more);
  }

  // Root mean square of x / tolerance: over each leaf, the largest.
  DEVICE D size_of(const R* x, const R* a, const R* b) const {
    R scaled[STATES];
    for (int e = 0; e < STATES; ++e) scaled[e] = x[e] / (f_max<W>(f_abs<W>(a[e]), f_abs<W>(b[e])) * rtol[e] + atol[e]);
    D largest = up_d<W>(0);
    for (int p = 0; p < PARTS; ++p) {
      R sum = up<W>(0);
      for (int e = PART[p]; e < PART[p + 1]; ++e) sum += scaled[e] * scaled[e];
      D of_part = to_double<W>(f_sqrt<W>(sum / real(PART[p + 1] - PART[p])));
      largest = sel((of_part > largest) | (of_part != of_part), of_part, largest);
    }
    return largest;
  }

  // Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I", II.4, "Starting Step Size".
  DEVICE D first_size(const R* slope) {
    const D of_state = size_of(y, y, y), of_slope = size_of(slope, y, y), span = end - t;
    D h0 = up_d<W>(0);
    R at_h0[N], moved[N], change[STATES];
    for (int l = 0; l < W; ++l) {
      const double a = at_d<W>(of_state, l), b = at_d<W>(of_slope, l);
      const double guess = a >= 1e-5 && b >= 1e-5 ? 0.01 * a / b : 1e-6;
      put(h0, l, copysign(fmin(guess, fabs(at_d<W>(span, l))), at_d<W>(span, l)));
    }
    for (int e = 0; e < N; ++e) moved[e] = y[e] + to_real<W>(h0) * slope[e];
    field<W>(to_real<W>(t + h0), moved, in, at_h0);
    for (int e = 0; e < STATES; ++e) change[e] = at_h0[e] - slope[e];
    const D bend = size_of(change, y, y);
    D found = up_d<W>(0);
    for (int l = 0; l < W; ++l) {
      const double a = at_d<W>(of_state, l), b = at_d<W>(of_slope, l), h = fabs(at_d<W>(h0, l));
      const double curvature = at_d<W>(bend, l) / h, whole = fabs(at_d<W>(span, l));
      double size = h;
      if (!(a - a == 0 && b - b == 0)) size = double(NAN);
      else if (curvature - curvature == 0) {
        const double largest = fmax(b, curvature);
        const double h1 = largest > 1e-15 ? pow(0.01 / largest, 1.0 / (ERROR_ORDER + 1)) : fmax(1e-6, 1e-3 * h);
        size = fmin(fmin(100 * h, h1), whole);
      }
      put(found, l, size);
    }
    return found;
  }

  // Where the next steps end: near the end of the span, equal steps lead up to it.
  DEVICE D step_end() const {
    const D distance = end - t;
    if constexpr (W == 1) {
      const double longest = rejected ? h : fmin(STRETCH * h, s.max_step), ratio = fabs(distance) / longest;
      if (ratio <= 1) return end;
      return ratio < IN_SIGHT ? t + distance / ceil(ratio) : t + copysign(h, distance);
    } else {
      const D stretched = STRETCH * h, bound = up_d<W>(s.max_step);
      const D longest = sel(rejected, h, sel(stretched < bound, stretched, bound));
      const D ratio = abs_d<W>(distance) / longest, none = up_d<W>(0);
      D to = t + sel(distance < none, -h, h);
      const MD near = ratio < IN_SIGHT;
      if (any<W>(near)) {
        for (int l = 0; l < W; ++l)
          if (near[l]) to[l] = ratio[l] <= 1 ? end[l] : t[l] + distance[l] / ceil(ratio[l]);
      }
      return to;
    }
  }
  DEVICE D grid_end() const {
    D to = t;
    for (int l = 0; l < W; ++l)
      if (is_set<W>(active, l)) put(to, l, s.grid[row[l] * s.grid_stride + position[l]]);
    return to;
  }

  // The factor by which the controller changes the step size.
  DEVICE D factor(const D& error, const MD& accept) const {
    const D tiny = up_d<W>(2.2250738585072014e-308);
    D f = s.safety * pow_d<W>(sel(error < tiny, tiny, error), s.power);  // not a number stays what it is
    if (s.remembers) {
      const D least = up_d<W>(1e-10);
      f *= pow_d<W>(sel(last > least, last, least), s.power_last);
      f *= pow_d<W>(sel(before > least, before, least), s.power_before);
      f = sel(error == 0, up_d<W>(s.factor_max), f);
    }
    const D most = sel(accept, sel(rejected, up_d<W>(1), up_d<W>(s.factor_max)), up_d<W>(s.safety));
    f = sel(f > s.factor_min, f, up_d<W>(s.factor_min));  // where it is not a number too
    f = sel(f < most, f, most);
    return sel((f > 1.0) & (f < s.dead_band), up_d<W>(1), f);
  }

  // Whether times lie before the ends of steps: products of differences would vanish where these are tiny.
  DEVICE static MD before_end(const D& at, const D& from, const D& until) {
    const MD onward = until > from;
    return (onward & (at < until)) | (neg(onward) & (at > until));
  }

  // The states within steps, as polynomials.
  DEVICE void within(const D& t1, R (*c)[N]) {
    extra_slopes<W>(t, t1, y, in, k);
    polynomials<W>(to_real<W>(t1 - t), k, c);
  }

  // Looks for signs of events in accepted steps, as rows/watch.py does; a step in which there may be one is left to it.
  DEVICE void look(D& t1, MD& accept, R* y1, R (*c)[N]) {
    D latest[SEEN], seen[SEEN][MOST_CHECKS + 2];
    MD calm[SEEN];
    const D zero = up_d<W>(0), huge = up_d<W>(1e150);
    MD quiet = accept;
    for (int e = 0; e < EVENTS; ++e) {
      const int ends = CHECKS[e] + 1;
      D* const passed = seen[e];
      passed[0] = sign[e] * value[e];
      for (int j = 1; j <= ends; ++j) {
        if (j < ends) {
          const real theta = real(double(j) / ends);
          R state[N];
          for (int n = 0; n < N; ++n) {
            R v = c[DEGREE - 1][n];
            for (int d = DEGREE - 2; d >= 0; --d) v = v * theta + c[d][n];
            state[n] = y[n] + v * theta;
          }
          latest[e] = to_double<W>(event<W>(e, to_real<W>(t + double(j) / ends * (t1 - t)), state, in));
        } else {
          latest[e] = to_double<W>(event<W>(e, to_real<W>(t1), y1, in));
        }
        passed[j] = sign[e] * latest[e];
      }
      // Just after an event its function says nothing of its sign before it has grown beyond its level.
      const MD begins = (level[e] > zero) & (passed[0] <= level[e]);
      D low = passed[1], high = passed[1];
      MD kept = (passed[1] > level[e]) & (passed[1] < huge);
      for (int j = 2; j <= ends; ++j) {
        kept = kept & (passed[j] > level[e]) & (passed[j] < huge);
        low = sel(passed[j] < low, passed[j], low);
        high = sel(passed[j] > high, passed[j], high);
      }
      kept = kept & (begins | ((passed[0] > zero) & (passed[0] < huge)));
      low = sel(neg(begins) & (passed[0] < low), passed[0], low);
      high = sel(neg(begins) & (passed[0] > high), passed[0], high);
      const MD near = high < 3.0 * low;  // then no parabola through three of them comes near zero
      MD straight = kept;
      for (int j = 1; j < ends; ++j) {
        const D left = passed[j - 1], right = passed[j + 1], slope = abs_d<W>(left - right);
        const MD passes = slope >= 2.0 * (left - 2.0 * passed[j] + right);
        straight = straight & (j == 1 ? passes | begins : passes);
      }
      calm[e] = kept & (near | straight);
      quiet = quiet & calm[e];
    }
    const MD doubtful = accept & neg(quiet);
    if (any<W>(doubtful))
      for (int l = 0; l < W; ++l)
        if (is_set<W>(doubtful, l) && !cross(l, calm, seen, t1, y1, c)) hold_undone(l);
    accept = accept & active;
    for (int e = 0; e < EVENTS; ++e) {
      value[e] = sel(accept, latest[e], value[e]);
      level[e] = sel(accept, zero, level[e]);
    }
    for (int l = 0; l < W; ++l)
      if (is_set<W>(accept, l)) put(evaluations, l, place<W>(evaluations, l) + EXTRA);
  }

  // Deals with a step of a row in which one event function clearly changes its sign once, and nothing else is in doubt.
  // Where the step must end there, it is replaced by one that does.
  DEVICE bool cross(int l, const MD* calm, const D (*seen)[MOST_CHECKS + 2], D& t1, R* y1, R (*c)[N]) {
    if constexpr (LANDS) return cross_once(l, calm, seen, t1, y1, c);
    else return false;
  }
  DEVICE bool cross_once(int l, const MD* calm, const D (*seen)[MOST_CHECKS + 2], D& t1, R* y1, R (*c)[N]) {
    int e = -1;
    for (int n = 0; n < EVENTS; ++n) {
      if (is_set<W>(calm[n], l)) continue;
      if (e >= 0) return false;
      e = n;
    }
    double passed[MOST_CHECKS + 2];
    const int ends = CHECKS[e] + 1;
    for (int j = 0; j <= ends; ++j) passed[j] = at_d<W>(seen[e][j], l);
    const double least = at_d<W>(level[e], l);
    const bool begins = least > 0;  // just after an event
    int place = begins ? 1 : 0;
    if (!(passed[place] > least)) return false;
    while (place <= ends && passed[place] > 0 && passed[place] < 1e150) ++place;
    if (place > ends || place == 0 || (begins && place == 1)) return false;
    for (int j = place; j <= ends; ++j)
      if (!(passed[j] < 0 && passed[j] > -1e150)) return false;
    for (int j = 1; j < ends; ++j) {  // two more between samples
      if (j == place || j + 1 == place || (begins && j == 1)) continue;
      const double side = j < place ? 1 : -1, left = side * passed[j - 1], right = side * passed[j + 1];
      if (fabs(left - right) < 2.0 * (left - 2.0 * side * passed[j] + right)) return false;
    }
    const double before = at_d<W>(sign[e], l);
    if (s.directions[e] != 0 && before != -double(s.directions[e])) {
      put(sign[e], l, -before);
      return true;
    }
    const double from = at_d<W>(t, l), to = at_d<W>(t1, l);
    In<1> own(s);
    own.load(s, 0, row[l]);
    OneStep<W> one(own, e, before, from, to);
    for (int n = 0; n < N; ++n) {
      one.y0[n] = at<W>(y[n], l);
      one.k[0][n] = at<W>(k[0][n], l);
      for (int d = 0; d < DEGREE; ++d) one.c[d][n] = at<W>(c[d][n], l);
    }
    const double at = one.locate(double(place - 1) / ends, double(place) / ends, passed[place - 1], passed[place]);
    const double there = from + at * (to - from);
    if (fabs(to - there) <= 64 * spacing(to)) return false;  // which may be that of what is scheduled
    crossed[l] = e;
    when[l] = there;
    theta[l] = at;
    if (!s.stops[e * s.count + place_of[l]]) {
      real state[N];
      one.state(at, state);
      for (int n = 0; n < N; ++n) s.there[place_of[l] * N + n] = state[n];
      put(sign[e], l, -before);
      return true;
    }
    if (!one.land(there)) {
      crossed[l] = -1;
      return false;
    }
    when[l] = one.end;
    theta[l] = double(NAN);
    put(evaluations, l, ::place<W>(evaluations, l) + one.taken * (STAGES - 1) + EXTRA);
    extra_slopes<1>(from, one.end, one.y0, own, one.k);
    polynomials<1>(real(one.end - from), one.k, one.c);
    put(t1, l, one.end);
    real middle[N];
    one.state(0.5, middle);
    for (int n = 0; n < N; ++n) {
      s.there[place_of[l] * N + n] = fmax(fabs(one.y0[n]), fabs(middle[n]));
      put(y1[n], l, one.y1[n]);
      for (int i = 1; i < SLOPES; ++i) put(k[i][n], l, one.k[i][n]);
      for (int d = 0; d < DEGREE; ++d) put(c[d][n], l, one.c[d][n]);
    }
    return true;
  }

  DEVICE void outputs_within(const D& t1, const MD& accept, R (*c)[N], bool have) {
    const MD due = before_end(ahead, t, t1) & accept;
    if (!any<W>(due)) return;
    if (!have) within(t1, c);
    for (int l = 0; l < W; ++l) {
      if (!is_set<W>(due, l)) continue;
      if (!have) put(evaluations, l, place<W>(evaluations, l) + EXTRA);
      const double from = at_d<W>(t, l), until = at_d<W>(t1, l);
      double to = at_d<W>(ahead, l);
      for (; until > from ? to < until : to > until; to = at_d<W>(ahead, l)) {
        const real theta = real((to - from) / (until - from));
        real value[N];
        for (int e = 0; e < N; ++e) {
          real v = at<W>(c[DEGREE - 1][e], l);
          for (int d = DEGREE - 2; d >= 0; --d) v = v * theta + at<W>(c[d][e], l);
          value[e] = at<W>(y[e], l) + v * theta;
        }
        keep(l, value);
      }
    }
  }

  DEVICE void record(int l, const D& t1, const R* y1) {
    // Where the record is full the row goes on, so that the room it needs is known.
    if (place<W>(steps, l) > s.capacity) return;
    const int64_t i = row[l] * (s.capacity + 1) + place<W>(steps, l);
    s.ends[i] = at_d<W>(t1, l);
    for (int e = 0; e < N; ++e) s.states[i * N + e] = at<W>(y1[e], l);
    if (PREDICTS) for (int e = 0; e < N; ++e) s.slopes[i * N + e] = at<W>(k[0][e], l);
  }

  // One step of every row, and what follows from it.
  DEVICE void iterate() {
    D t1 = ADAPTIVE ? step_end() : grid_end();
    t1 = sel(active, t1, t);
    const D taken = abs_d<W>(t1 - t);
    MD still = (taken == 0) & active;
    const MD tired = (steps + rejections >= up_i<W>(s.max_steps)) & active;
    if constexpr (RESUMES) {
      still = still | ((taken - taken != 0) & active);
      if (s.ends) {
        const MD full = (steps >= up_i<W>(s.capacity)) & active;
        if (any<W>(full))
          for (int l = 0; l < W; ++l) if (is_set<W>(full, l)) hold(l, FULL);
        still = still & active;
      }
    }
    if (any<W>(still | tired)) stop_those_that_cannot_step(taken, still, tired & active);
    if (!known) begin_step<W>(t, y, in, k[0], at_start);
    R y1[N], error[N];
    step<W>(t, t1, y, in, k, at_start, y1, error);
    const typename Lanes<W>::I one = up_i<W>(1), zero = up_i<W>(0);
    evaluations += sel(active, one * (STAGES - 1), zero) + sel(active & anew, one, zero);
    if (JACOBIAN) {
      jacobians += sel(active & anew, one, zero);
      matrices += sel(active, one, zero);
    }
    D size = up_d<W>(0), next_h = h;
    MD accept = active;
    if (ADAPTIVE) {
      size = size_of(error, y, y1);
      accept = size <= 1.0;
      if (s.accept_at_min_step) accept |= (h <= s.min_step) & (size - size == 0);
      next_h = taken * factor(size, accept);
      const D low = up_d<W>(s.min_step), high = up_d<W>(s.max_step);
      next_h = sel(next_h > low, next_h, low);
      next_h = sel(next_h < high, next_h, high);
      accept = accept & active;
      judge(accept, taken, next_h, size, y1);
    } else {
      check_finite(accept, taken, y1);
    }
    R c[DEGREE][N];
    const bool looks = EVENTS > 0 && any<W>(accept);
    if constexpr (EVENTS > 0) {
      if (looks) {
        within(t1, c);
        look(t1, accept, y1, c);
      }
    }
    steps += sel(accept, one, zero);
    if constexpr (WATCHES) watch(accept);
    if (s.outputs) outputs_within(t1, accept, c, looks);
    if (ADAPTIVE) {
      // A step cut very short to land on the end says nothing about the size of the next one.
      const MD update = (taken > 0.1 * h) | (next_h > h) | neg(accept), learn = update & accept;
      before = sel(learn, last, before);
      last = sel(learn, size, last);
      rejected = (update & neg(accept)) | (neg(update) & rejected);
      h = sel(update, next_h, h);
    }
    t = sel(accept, t1, t);
    const M moved = narrow<W>(accept);
    const bool handed = HERMITE && looks;  // dense output has evaluated the slope at the end
    const int from = FSAL || PREDICTS ? STAGES - 1 : handed ? STAGES : 0;
    for (int e = 0; e < N; ++e) {
      y[e] = sel(moved, y1[e], y[e]);
      k[0][e] = sel(moved, k[from][e], k[0][e]);
    }
    known = FSAL || PREDICTS || handed || !any<W>(accept);
    if (!FSAL && !PREDICTS) anew = handed ? active & neg(active) : accept;
    if (s.ends)
      for (int l = 0; l < W; ++l) if (is_set<W>(accept, l)) record(l, t1, y1);
    // Where rows/loop.py goes on, what it does there comes before the output.
    MD keeps = RESUMES ? accept & neg(t == end) : accept;
    if constexpr (RESUMES)
      for (int l = 0; l < W; ++l) if (crossed[l] >= 0 && theta[l] != theta[l]) set_lane<W>(keeps, l, false);
    if (s.outputs && any<W>((ahead == t) & keeps))
      for (int l = 0; l < W; ++l) if (is_set<W>(keeps, l)) keep_state(l);
    if (!ADAPTIVE)
      for (int l = 0; l < W; ++l) ++position[l];
    const MD arrived = (t == end) & accept;
    if (any<W>(arrived))
      for (int l = 0; l < W; ++l) if (is_set<W>(arrived, l)) finish(l, SUCCESS);
    if constexpr (RESUMES)
      for (int l = 0; l < W; ++l) if (is_set<W>(active, l) && crossed[l] >= 0) finish(l, CROSSED);
    if constexpr (WATCHES) {
      const MD stiff = (against >= up_i<W>(PATIENCE)) & accept & active;
      if (any<W>(stiff))
        for (int l = 0; l < W; ++l) if (is_set<W>(stiff, l)) finish(l, STIFF);
    }
  }

  // Counts the steps that stability limits, as methods/ode/stiffness.py does: the last two stages lie at the same time.
  DEVICE void watch(const MD& accept) {
    typedef typename Lanes<W>::I I;
    const I zero = up_i<W>(0), one = up_i<W>(1);
    const MD looks = (wait <= zero) & accept;
    wait -= sel(accept, one, zero);
    if (!any<W>(looks)) return;
    R of_slopes = up<W>(0), of_states = up<W>(0);
    for (int e = 0; e < STATES; ++e) {
      const R slope = k[STAGES - 1][e] - k[STAGES - 2][e];
      R state = up<W>(0);
      for (int j = 0; j < STAGES; ++j) state += real(LAST[j]) * k[j][e];
      of_slopes += slope * slope;
      of_states += state * state;
    }
    const MD limited = (to_double<W>(f_sqrt<W>(of_slopes / of_states)) > STABLE) & looks;
    const I fewer = sel(against > zero, against - one, against);
    against = sel(limited, against + one, sel(looks, fewer, against));
    wait = sel(looks, sel(against > zero, zero, up_i<W>(EVERY - 1)), wait);
  }

  DEVICE void stop_those_that_cannot_step(const D& taken, const MD& still, const MD& tired) {
    for (int l = 0; l < W; ++l) {
      if (is_set<W>(still, l)) finish(l, NO_PROGRESS, at_d<W>(h, l));
      else if (is_set<W>(tired, l)) finish(l, OUT_OF_STEPS, at_d<W>(taken, l));
    }
  }

  // What rejections lead to, and acceptances after an error that was not finite.
  DEVICE void judge(MD& accept, const D& taken, const D& next_h, const D& size, const R* y1) {
    const MD refused = neg(accept) & active;
    if (!any<W>(refused | (overflowed & active))) return;
    for (int l = 0; l < W; ++l) {
      if (!is_set<W>(active, l)) continue;
      if (is_set<W>(refused, l)) rejection(l, taken, next_h, size, y1);
      else if (is_set<W>(overflowed, l)) after_overflow(l, taken, y1);
    }
    accept = accept & active;
  }

  DEVICE void after_overflow(int l, const D& taken, const R* y1) {
    bool same = true, flat = true;
    for (int e = 0; e < STATES; ++e) {
      same &= at<W>(y1[e], l) == at<W>(y[e], l);
      flat &= at<W>(k[0][e], l) == 0;
    }
    if (same && !flat) {
      if constexpr (RESUMES) hold_undone(l);
      else finish(l, NOT_FINITE, at_d<W>(taken, l));
    }
    set_lane<W>(overflowed, l, false);
  }

  // Of fixed steps.
  DEVICE void check_finite(MD& accept, const D& taken, const R* y1) {
    R sum = up<W>(0);
    for (int e = 0; e < STATES; ++e) sum += y1[e] - y1[e];
    const MD bad = widen<W>(sum != 0) & active;
    if (!any<W>(bad)) return;
    for (int l = 0; l < W; ++l) {
      if (!is_set<W>(bad, l)) continue;
      if constexpr (RESUMES) hold_undone(l);
      else finish(l, NOT_FINITE, at_d<W>(taken, l));
    }
    accept = accept & active;
  }

  DEVICE void rejection(int l, const D& taken, const D& next_h, const D& size, const R* y1) {
    const double error = at_d<W>(size, l), smaller = at_d<W>(next_h, l);
    const bool finite = error - error == 0;
    const bool small = smaller < fmax(16 * spacing(at_d<W>(t, l)), at_d<W>(smallest, l));
    const bool fails = small || !(at_d<W>(h, l) > s.min_step);
    if constexpr (RESUMES) {
      if (fails) {
        hold_undone(l);
        return;
      }
    }
    put(rejections, l, place<W>(rejections, l) + 1);
    set_lane<W>(overflowed, l, !finite);
    if (!fails) return;
    bool state_finite = true;
    for (int e = 0; e < STATES; ++e) state_finite &= at<W>(y1[e], l) - at<W>(y1[e], l) == 0;
    const int64_t why = finite ? (small ? UNDERFLOW : TOLERANCE) : state_finite ? ERROR_NOT_FINITE : NOT_FINITE;
    finish(l, why, at_d<W>(taken, l), smaller, error);
  }

  // Rows from `first` to `beyond`: a lane whose row is through takes the next.
  DEVICE void run(int64_t first, int64_t beyond) {
    bool fresh[W];
    active = MD{};
    known = true;
    through = false;
    for (int l = 0; l < W; ++l) {
      begin_lane(l, first + l < beyond ? first + l : first);
      fresh[l] = first + l < beyond;
      set_lane<W>(active, l, fresh[l]);
    }
    int64_t waiting = first + W;
    begin(fresh);
    for (;;) {
      if (through) {
        through = false;
        bool loaded = false;
        for (int l = 0; l < W; ++l) {
          fresh[l] = !is_set<W>(active, l) && waiting < beyond;
          if (fresh[l]) { begin_lane(l, waiting++); loaded = true; }
        }
        if (!any<W>(active)) return;
        if (loaded) {
          if (!known && !JACOBIAN) { field<W>(to_real<W>(t), y, in, k[0]); known = true; }
          begin(fresh);
          continue;
        }
      }
      iterate();
    }
  }
};
