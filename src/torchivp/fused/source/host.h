// Where kernels run on the processor: blocks of rows, taken by threads.

#include <pthread.h>

// Blocks of rows that are still to be done. The threads are POSIX's own: with the headers of the standard library's
// a kernel takes a sixth longer to compile.
template <class Work> struct Blocks {
  const Work& work;
  const int64_t count;
  int64_t next = 0;
  void take() {
    for (int64_t b; (b = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < count;) work(b);
  }
  static void* in_thread(void* blocks) {
    static_cast<Blocks*>(blocks)->take();
    return nullptr;
  }
};

template <class Work> static void in_threads(int64_t threads, int64_t count, const Work& work) {
  constexpr int64_t MOST = 1024;
  if (threads > count) threads = count;
  if (threads > MOST) threads = MOST;
  Blocks<Work> blocks{work, count};
  pthread_t others[MOST];
  int64_t begun = 0;
  while (begun + 1 < threads && !pthread_create(&others[begun], nullptr, Blocks<Work>::in_thread, &blocks)) ++begun;
  blocks.take();  // alone, where there can be no other thread
  for (int64_t i = 0; i < begun; ++i) pthread_join(others[i], nullptr);
}

#ifdef SOLVES
// Whether the outputs of a row lie in order within its span: each after the other, or, in the wider sense, none before
// the other, where those that are not a number do not count.
static bool in_order(const Solve& s, int64_t row, bool wider) {
  const double start = s.start[row * s.span_stride], end = s.end[row * s.span_stride];
  const double direction = end >= start ? 1 : -1, *wanted = s.wanted + row * s.wanted_stride;
  double before = wider ? start * direction : -INFINITY, first = NAN;
  for (int64_t i = 0; i < s.outputs; ++i) {
    const double t = wanted[i] * direction;
    if (wider ? t < before : !(t > before)) return false;
    if (first != first) first = t;
    if (t == t) before = t;
  }
  return first != first || (first >= start * direction && before <= end * direction);
}

// The same of the rows that are to be looked at: CHECK_FIRST is for outputs that are the same for all.
constexpr int64_t CHECK_FIRST = 1;
static bool all_in_order(const Solve& s) {
  int64_t rows = s.rows;
  if (s.check_wanted == CHECK_FIRST || (rows && !s.span_stride && !s.wanted_stride)) rows = 1;
  for (int64_t row = 0; row < rows; ++row)
    if (!in_order(s, row, s.check_wanted != CHECK_FIRST)) return false;
  return true;
}

// Counts are those of outcomes, and then those of steps.
static void sum_up(Solve& s) {
  s.most = s.failed = s.stiff = 0;
  for (int64_t i = 0; i < s.rows; ++i) {
    s.failed += s.counts[i] != SUCCESS && s.counts[i] != STIFF;
    s.stiff += s.counts[i] == STIFF;
    if (s.counts[s.rows + i] > s.most) s.most = s.counts[s.rows + i];
  }
}

extern "C" int64_t solve(Solve* call) {
  const Solve& s = *call;
  if (s.check_wanted && !all_in_order(s)) return 0;
  once(s);
  if (s.rows == 1) {
    Rows<1>(s).run(0, 1);
  } else {
    const int64_t blocks = (s.count + s.block - 1) / s.block;
    in_threads(s.threads, blocks, [&](int64_t b) {
      const int64_t first = b * s.block, beyond = first + s.block < s.count ? first + s.block : s.count;
      Rows<LANES> rows(s);
      rows.run(first, beyond);
    });
  }
  if (!RESUMES) sum_up(*call);
  return 1;
}
#endif

#ifdef PULLS
// Sums over rows are those of blocks, added in the order of the blocks: the same whatever threads there are.
extern "C" int64_t pull(const Pull* call) {
  const Pull& s = *call;
  once(s);
  if (s.rows == 1) {
    Backward<1> back(s, s.partial);
    back.run(0, 1);
    for (int e = 0; e < SUMS_USED; ++e) s.grad_shared[e] = s.partial[e];
    return 1;
  }
  const int64_t blocks = (s.rows + s.block - 1) / s.block;
  in_threads(s.threads, blocks, [&](int64_t b) {
    const int64_t first = b * s.block, beyond = first + s.block < s.rows ? first + s.block : s.rows;
    auto* back = new Backward<LANES>(s, s.partial + b * SUMS_USED);  // too large for the stack of a thread
    back->run(first, beyond);
    delete back;
  });
  for (int e = 0; e < SUMS_USED; ++e) {
    double sum = 0;
    for (int64_t b = 0; b < blocks; ++b) sum += s.partial[b * SUMS_USED + e];
    s.grad_shared[e] = real(sum);
  }
  return 1;
}
#endif
