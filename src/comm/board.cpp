#include "comm/board.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <random>

#include "core/error.h"

namespace utrain {
namespace {

int64_t read(const RankSlot::Word& word) {
  return word.load(std::memory_order_relaxed);
}

size_t bytes_of(int n_slots) {
  return sizeof(Board::Shared) + sizeof(RankSlot) * static_cast<size_t>(n_slots - 1);
}

[[noreturn]] void fail_shared(const std::string& name, const char* what) {
  fail(ExitCode::io, "shared memory", fmt::format("{} {}: {}", what, name, std::strerror(errno)),
       "see that /dev/shm is there, writable, and not full");
}

}  // namespace

Stamp RankSlot::stamp() const {
  return {static_cast<RunPhase>(read(phase)), read(step),   read(number),
          static_cast<CallKind>(read(kind)),  read(n_elem), read(inside) != 0};
}

Board::Board() : bytes_(bytes_of(1)) {
  void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) fail_shared("for a process", "cannot map memory");
  shared_ = static_cast<Shared*>(memory);
}

Board::Board(const std::string& name, int n_slots)
    : name_(name), n_slots_(n_slots), bytes_(bytes_of(n_slots)) {
  const bool is_new = name.empty();
  if (is_new) name_ = fmt::format("/utrain-{}-{:08x}", getpid(), std::random_device()());
  const int flags = O_RDWR | (is_new ? O_CREAT | O_EXCL : 0);
  const int file = shm_open(name_.c_str(), flags, 0600);
  if (file < 0) fail_shared(name_, "cannot open");
  is_linked_ = is_new;
  // Taken now: a page that is missing later would end the process with SIGBUS.
  const int error = is_new ? posix_fallocate(file, 0, static_cast<off_t>(bytes_)) : 0;
  void* memory =
      error == 0 ? mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) : MAP_FAILED;
  if (error != 0) errno = error;
  if (memory == MAP_FAILED) {
    const int why = errno;
    close(file);
    unlink();
    errno = why;
    fail_shared(name_, "cannot map");
  }
  close(file);
  shared_ = static_cast<Shared*>(memory);
}

Board::~Board() {
  unlink();
  munmap(shared_, bytes_);
}

void Board::unlink() {
  if (is_linked_) shm_unlink(name_.c_str());
  is_linked_ = false;
}

}  // namespace utrain
