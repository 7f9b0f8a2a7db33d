// Where kernels run on the processor: blocks of rows, taken by threads.

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

template <class Work> static void in_threads(int64_t threads, int64_t blocks, const Work& work) {
  if (threads > blocks) threads = blocks;
  if (threads <= 1) {
    for (int64_t b = 0; b < blocks; ++b) work(b);
    return;
  }
  std::atomic<int64_t> next{0};
  auto take = [&] {
    for (int64_t b; (b = next.fetch_add(1)) < blocks;) work(b);
  };
  std::vector<std::thread> others;
  for (int64_t i = 1; i < threads; ++i) others.emplace_back(take);
  take();
  for (auto& other : others) other.join();
}

#ifdef SOLVES
// Whether the outputs, the same for all rows, lie in order within the span.
static bool in_order(const Solve& s) {
  const double direction = *s.end >= *s.start ? 1 : -1;
  double before = -INFINITY;
  for (int64_t i = 0; i < s.outputs; ++i) {
    const double t = s.wanted[i] * direction;
    if (!(t > before)) return false;
    before = t;
  }
  return s.outputs == 0 || (s.wanted[0] * direction >= *s.start * direction && before <= *s.end * direction);
}

extern "C" int64_t solve(const Solve* call) {
  const Solve& s = *call;
  if (s.check_wanted && !in_order(s)) return 0;
  once(s);
  if (s.rows == 1) {
    Rows<1>(s).run(0, 1);
    return 1;
  }
  const int64_t blocks = (s.rows + s.block - 1) / s.block;
  in_threads(s.threads, blocks, [&](int64_t b) {
    const int64_t first = b * s.block, beyond = first + s.block < s.rows ? first + s.block : s.rows;
    Rows<LANES> rows(s);
    rows.run(first, beyond);
  });
  return 1;
}
#endif

#ifdef PULLS
// Sums over rows are those of blocks, added in the order of the blocks: the same whatever threads there are.
extern "C" int64_t pull(const Pull* call) {
  const Pull& s = *call;
  once(s);
  if (s.rows == 1) {
    Backward<1> back(s);
    back.run(0, 1, s.partial);
    for (int e = 0; e < SUMS_USED; ++e) s.grad_shared[e] = s.partial[e];
    return 1;
  }
  const int64_t blocks = (s.rows + s.block - 1) / s.block;
  in_threads(s.threads, blocks, [&](int64_t b) {
    const int64_t first = b * s.block, beyond = first + s.block < s.rows ? first + s.block : s.rows;
    std::unique_ptr<Backward<LANES>> back(new Backward<LANES>(s));
    back->run(first, beyond, s.partial + b * SUMS_USED);
  });
  for (int e = 0; e < SUMS_USED; ++e) {
    double sum = 0;
    for (int64_t b = 0; b < blocks; ++b) sum += s.partial[b * SUMS_USED + e];
    s.grad_shared[e] = real(sum);
  }
  return 1;
}
#endif
