// What the steps of explicit methods start from: the slope at the start.

template <int W> struct Start {};

template <int W> FUSED void begin_step(
    const typename Lanes<W>::D& t, const typename Lanes<W>::R* y, const In<W>& in, typename Lanes<W>::R* slope,
    Start<W>&) {
  field<W>(to_real<W>(t), y, in, slope);
}
