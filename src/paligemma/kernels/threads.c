/* Threads, how they wait for each other, and memory. */
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#define PAUSE() _mm_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

#include "kernels.h"

/* Between products torch computes, so their threads come from the OpenMP library that torch has loaded
   when its functions were given: they are awake, and a second pool would fight with them for the cores.
   Steps come one after another and are offered to a pool of our own that does not spin. */
static struct {
  void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
  int (*thread)(void);
  int (*team)(void);
} omp;
static int num_threads = 1;

typedef struct {
  pg_job job;
  void *argument;
} call;

enum { MAX_THREADS = 256 };
static struct {
  pthread_mutex_t use, lock;
  pthread_cond_t begin, end;
  int started, free, busy; /* threads; places in the team that nobody took; threads at work */
  unsigned generation;
  call now;
  int team;
} pool = {.use = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER,
          .begin = PTHREAD_COND_INITIALIZER, .end = PTHREAD_COND_INITIALIZER};

void pg_use_openmp(void *parallel, void *thread, void *team) {
  *(void **)&omp.parallel = parallel;
  *(void **)&omp.thread = thread;
  *(void **)&omp.team = team;
}

int pg_num_threads(void) { return num_threads; }

void pg_set_num_threads(int wanted) {
  num_threads = wanted < 1 ? 1 : wanted < MAX_THREADS ? wanted : MAX_THREADS;
}

static void in_team(void *p) {
  call *c = p;
  c->job(c->argument, omp.thread(), omp.team());
}

static void *worker(void *p) {
  unsigned seen = 0;
  pthread_mutex_lock(&pool.lock);
  for (;;) {
    while (pool.generation == seen || pool.free == 0) pthread_cond_wait(&pool.begin, &pool.lock);
    seen = pool.generation;
    call now = pool.now;
    int team = pool.team, thread = team - pool.free--;
    pool.busy++;
    pthread_mutex_unlock(&pool.lock);
    now.job(now.argument, thread, team);
    pthread_mutex_lock(&pool.lock);
    if (--pool.busy == 0) pthread_cond_signal(&pool.end);
  }
  return p;
}

static void forget_workers(void) { /* a forked child has none of its parent's threads */
  pool.started = pool.free = pool.busy = 0;
  pthread_mutex_init(&pool.use, NULL);
  pthread_mutex_init(&pool.lock, NULL);
  pthread_cond_init(&pool.begin, NULL);
  pthread_cond_init(&pool.end, NULL);
}

void pg_offer(pg_job job, void *argument, int team) {
  if (team == 1 || pthread_mutex_trylock(&pool.use)) { /* the pool serves one caller at a time */
    job(argument, 0, 1);
    return;
  }
  if (!pool.started) pthread_atfork(NULL, NULL, forget_workers);
  while (pool.started < team - 1) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, worker, NULL)) break;
    pthread_detach(thread);
    pool.started++;
  }
  pthread_mutex_lock(&pool.lock);
  pool.now = (call){job, argument};
  pool.team = team;
  pool.free = team - 1;
  pool.generation++;
  pthread_cond_broadcast(&pool.begin);
  pthread_mutex_unlock(&pool.lock);
  job(argument, 0, team);
  pthread_mutex_lock(&pool.lock);
  pool.free = 0;
  while (pool.busy) pthread_cond_wait(&pool.end, &pool.lock);
  pthread_mutex_unlock(&pool.lock);
  pthread_mutex_unlock(&pool.use);
}

void pg_run(pg_job job, void *argument) {
  call now = {job, argument};
  if (omp.parallel && num_threads > 1) omp.parallel(in_team, &now, (unsigned)num_threads, 0);
  else pg_offer(job, argument, num_threads);
}

/* ---------------------------------------------------------------- waiting */

/* Turns of a wait before it sleeps: some microseconds, as long as pieces of work differ. A thread
   that waits longer waits for one that has no processor, and would take its time from it. */
enum { TURNS = 1000 };

static void sleep_while(pg_event *e, int value) {
#if defined(__linux__)
  atomic_fetch_add(&e->sleepers, 1);
  syscall(SYS_futex, &e->value, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
  atomic_fetch_sub(&e->sleepers, 1);
#else
  (void)e, (void)value;
  sched_yield();
#endif
}

void pg_await(pg_event *e, int wanted) {
  int value;
  for (int turn = 0; (value = atomic_load(&e->value)) < wanted; turn++)
    if (turn < TURNS) PAUSE();
    else sleep_while(e, value);
}

void pg_advance(pg_event *e, int count, int wanted) {
  if (atomic_fetch_add(&e->value, count) + count < wanted) return;
#if defined(__linux__)
  if (atomic_load(&e->sleepers))
    syscall(SYS_futex, &e->value, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
#endif
}

/* ---------------------------------------------------------------- memory */

/* Ask for huge pages under memory that nothing has touched yet: 1.2 to 1.3 times the bandwidth. */
void pg_advise_huge(void *memory, size_t size) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  uintptr_t page = 4096, start = ((uintptr_t)memory + page - 1) / page * page;
  uintptr_t end = ((uintptr_t)memory + size) / page * page;
  if (end > start) madvise((void *)start, end - start, MADV_HUGEPAGE);
#else
  (void)memory, (void)size;
#endif
}

void *pg_new_memory(size_t size) {
  void *memory = aligned_alloc(64, (size + 63) & ~(size_t)63);
  if (!memory) abort();
  if (size >= 1 << 21) pg_advise_huge(memory, size);
  return memory;
}

void *pg_scratch(size_t size) {
  static _Thread_local void *memory;
  static _Thread_local size_t held;
  if (held < size) {
    free(memory);
    held = (size + (1 << 16)) & ~(size_t)63;
    memory = aligned_alloc(64, held);
    if (!memory) abort();
  }
  return memory;
}

/* ---------------------------------------------------------------- sources */

#ifndef PG_SOURCES
#define PG_SOURCES ""
#endif

const char *pg_sources(void) { return PG_SOURCES; }
