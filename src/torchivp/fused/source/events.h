// Events of a row: where one lies in a step, by events/root.py, and the step that ends on it, by events/landing.py. Where
// these would go on by bisection, or the function jumps, the step is left to rows/loop.py.

// Where a function changes its sign from positive at a to negative at b: Oliveira and Takahashi, "An enhancement of the
// bisection method average performance preserving minmax optimality", ACM TOMS 47 (2021).
template <class F> static double find_root(const F& f, double a, double b, double fa, double fb, double width) {
  width = fmax(width, fmax(spacing(a), spacing(b)));
  const double start = fabs(b - a), most = ceil(log2(fmax(start / width, 1.0))) + 1;
  bool at_zero = false;
  for (int i = 0; i < 200; ++i) {
    const double size = fabs(b - a), middle = a + (b - a) / 2;
    if (!(size > width) || middle == a || middle == b) break;
    const double radius = width * pow(2.0, fmin(most - i, 1000.0)) / 2 - size / 2, push = 0.2 * size / start * size;
    double interpolated = a + (b - a) / (1.0 - fb / fa);
    if (!(fa - fa == 0 && fb - fb == 0)) interpolated = middle;
    const double off = middle - interpolated, towards = off > 0 ? 1 : off < 0 ? -1 : 0;
    const double truncated = push <= fabs(off) ? interpolated + towards * push : middle;
    double x = fabs(truncated - middle) <= radius ? truncated : middle - towards * fmax(radius, 0.0);
    if (!(x > fmin(a, b) && x < fmax(a, b))) x = middle;
    if (fb == 0) {
      x = at_zero ? middle : b + copysign(width, a - b);
      at_zero = true;
    }
    const double fx = f(x);
    if (fx > 0) a = x, fa = fx;
    else b = x, fb = fx;
  }
  return b;
}

// A step of one row, in which event e has the sign at its start. W is that of the lanes that the row comes from.
template <int W> struct OneStep {
  const In<1>& in;
  const int e;
  const double sign, t0, t1;
  real y0[N], y1[N], k[SLOPES][N], c[DEGREE][N];
  double end;  // where the step ends that k belongs to, once it has been taken again
  int64_t taken = 0;

  DEVICE OneStep(const In<1>& in, int e, double sign, double t0, double t1)
      : in(in), e(e), sign(sign), t0(t0), t1(t1), end(t1) {}

  DEVICE void state(double theta, real* y) const {
    const real x = real(theta);
    for (int n = 0; n < N; ++n) {
      real v = c[DEGREE - 1][n];
      for (int d = DEGREE - 2; d >= 0; --d) v = v * x + c[d][n];
      y[n] = y0[n] + v * x;
    }
  }
  DEVICE double signed_at(double t, const real* y) const { return sign * double(event<1>(e, real(t), y, in)); }
  DEVICE double along(double theta, double t) const {
    real y[N];
    state(theta, y);
    return signed_at(t, y);
  }
  // The event as a fraction of the step, between the fractions a and b, where the function is fa and fb.
  DEVICE double locate(double a, double b, double fa, double fb) const {
    const double width = 4 * spacing(fmax(fabs(t0), fabs(t1))) / fabs(t1 - t0);
    return find_root([&](double theta) { return along(theta, t0 + theta * (t1 - t0)); }, a, b, fa, fb, width);
  }

  // The step taken again, to t; the event function there.
  DEVICE double take(double t) {
    real error[N];
    const Start<1> nothing{};
    step<1>(t0, t, y0, in, k, nothing, y1, error);
    end = t;
    ++taken;
    return signed_at(t, y1);
  }

  // Takes the step again to the event, which lies at t on the interpolant; whether that is as simple as it should be.
  DEVICE bool land(double t) {
    const double length = fabs(t1 - t0), width = 4 * spacing(fmax(fmax(fabs(t0), fabs(t1)), length));
    const double rounding = 2 * width + 8 * (sizeof(real) == 8 ? 2.220446049250313e-16 : 1.1920928955078125e-07) * length;
    const auto at = [&](double x) { return along((x - t0) / (t1 - t0), x); };
    const double before = t - 1e-3 * (t - t0), value_there = at(t), value_before = at(before);
    const double just_before = at(t - copysign(width, t - t0));
    if (!(fmax(fabs(value_there), fabs(just_before)) <= 0.1 * fabs(value_before))) return false;
    double slope = (value_there - value_before) / (t - before);
    if (!(slope - slope == 0)) return false;
    const double low = fmin(t0, t1), high = fmax(t0, t1);
    double value = take(t), best = value;
    for (int i = 0; i <= 8; ++i) {
      const double correction = value == 0 ? 0 : -value / slope;
      const bool sensible = fabs(correction) < 0.1 * (high - low) && low < t + correction && t + correction < high;
      const bool converges = i == 0 || fabs(value) <= fabs(best) / 2;
      if (converges) best = value;
      if (fabs(correction) <= rounding) return true;
      if (!(sensible && converges && i < 8)) return false;
      const double last = t, value_last = value;
      t += correction;
      value = take(t);
      slope = (value - value_last) / (t - last);
    }
    return false;
  }
};
