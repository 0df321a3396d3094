// Rounds in which processes add up vectors through memory that they share.
//
// Owns what lies in the memory, and who waits for whom how. Does not own the memory (rooms.py) or what is done where a round is given up
// (collectives.py). Tests: tests/syncbn/test_shared_memory.py.
//
// A round is a word and a vector per process. The word says how many have written theirs, and whether somebody has given the round up:
// both in one word, so that a round is either complete for everybody or given up for everybody. Whoever waits spins a little, because the
// others are seldom far, and then sleeps on the word.

#include <atomic>
#include <climits>
#include <cstdint>
#include <cstring>
#include <ctime>

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

using Index = std::int64_t;
using Word = std::atomic<std::uint32_t>;
static_assert(Word::is_always_lock_free && sizeof(Word) == 4);

// As _Room in rooms.py.
struct Room {
  char *memory;
  Index world_size, rank, capacity, num_rounds;  // the fullest vector, and how many rounds there is room for
};

static const Index LINE = 64;                    // bytes that processes hand over at once
static const std::uint32_t GIVEN_UP = 0x8000;    // of a word: round (16 bits), given up (1), how many have written (15)
static const std::uint32_t ROUND = 0xffff0000u;
static const std::uint32_t WRITTEN = 0x7fff;

enum Outcome { DONE = 0, LEFT = 1, UNEQUAL = 2 };

static double now_s() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

static void wake_all(Word *word) { syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0); }

static void sleep_on(Word *word, std::uint32_t seen, double at_most_s) {
  timespec bound;
  bound.tv_sec = time_t(at_most_s);
  bound.tv_nsec = long((at_most_s - double(bound.tv_sec)) * 1e9) + 1000;
  if (bound.tv_nsec > 999999999) bound.tv_nsec = 999999999;
  syscall(SYS_futex, word, FUTEX_WAIT, seen, &bound, nullptr, 0);
}

static void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

static Index bytes_of_vector(const Room &room) { return LINE + (room.capacity * 8 + LINE - 1) / LINE * LINE; }

static Word *word_of(const Room &room, Index round) { return reinterpret_cast<Word *>(room.memory + LINE * (round % room.num_rounds)); }

// A process's vector: its length, and on the next line its values.
static char *vector_of(const Room &room, Index round, Index rank) {
  const Index vectors = (round % room.num_rounds) * room.world_size + rank;
  return room.memory + LINE * room.num_rounds + vectors * bytes_of_vector(room);
}

static bool is_complete(const Room &room, std::uint32_t word) { return Index(word & WRITTEN) == room.world_size; }

extern "C" {

Index size_of_room() { return sizeof(Room); }

Index bytes_of_memory(const Room *room) { return room->num_rounds * (LINE + room->world_size * bytes_of_vector(*room)); }

// Write this process's vector. Returns at once.
void enter(const Room *room, Index round, const double *values, Index count) {
  char *vector = vector_of(*room, round, room->rank);
  std::memcpy(vector, &count, sizeof count);
  std::memcpy(vector + LINE, values, std::size_t(count) * sizeof *values);
  Word *word = word_of(*room, round);
  const std::uint32_t number = std::uint32_t(round) << 16;
  std::uint32_t seen = word->load(std::memory_order_acquire), entered;
  do {
    if ((seen & ROUND) == number && (seen & GIVEN_UP)) return;
    // The first to come takes over the word from a round that everybody has left.
    entered = (seen & ROUND) == number ? seen + 1 : number | 1;
  } while (!word->compare_exchange_weak(seen, entered, std::memory_order_acq_rel, std::memory_order_acquire));
  if (is_complete(*room, entered)) wake_all(word);
}

// Wait for everybody's vector, and write their sum in the order of the ranks. Gives the round up after `patience_s`.
int leave(const Room *room, Index round, double *sum, Index count, double spin_s, double patience_s) {
  Word *word = word_of(*room, round);
  const double began_s = now_s();
  std::uint32_t seen;
  while (!is_complete(*room, seen = word->load(std::memory_order_acquire))) {
    if (seen & GIVEN_UP) return LEFT;
    const double waited_s = now_s() - began_s;
    if (waited_s < spin_s) {
      relax();
    } else if (waited_s < patience_s) {
      sleep_on(word, seen, patience_s - waited_s);
    } else if (word->compare_exchange_strong(seen, seen | GIVEN_UP, std::memory_order_acq_rel)) {
      wake_all(word);
      return LEFT;
    }
  }
  for (Index rank = 0; rank < room->world_size; ++rank) {
    const char *vector = vector_of(*room, round, rank);
    Index length;
    std::memcpy(&length, vector, sizeof length);
    if (length != count) return UNEQUAL;
    const double *values = reinterpret_cast<const double *>(vector + LINE);
    for (Index i = 0; i < count; ++i) sum[i] = rank == 0 ? values[i] : sum[i] + values[i];
  }
  return DONE;
}
}
