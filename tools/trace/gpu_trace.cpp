// Writes down what a program's GPU does, kernel by kernel and copy by copy, with CUPTI's activity
// records. The CUDA driver loads it into a program that knows nothing of it:
//   CUDA_INJECTION64_PATH=libgpu_trace.so GPU_TRACE=DIRECTORY mpirun -np 4 utrain input.toml
// At the end each rank writes DIRECTORY/trace.RANK.json, events as chrome://tracing and Perfetto
// read them: pid = rank, tid = stream, microseconds; tools/timeline draws them. Times of the ranks
// of a node share one clock. The newest kMostEvents are kept.
#include <cupti.h>
#include <cxxabi.h>
#include <fmt/core.h>

#include <array>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <string>

namespace {

constexpr size_t kBufferBytes = size_t{4} << 20;
constexpr size_t kMostEvents = 400'000;

struct Event {
  std::string name;
  uint64_t start, end;  // ns
  uint32_t stream;
  uint64_t bytes;  // of a copy
};

class Trace {
 public:
  void add(Event event) {
    const std::lock_guard lock(mutex_);
    events_.push_back(std::move(event));
    if (events_.size() > kMostEvents) events_.pop_front();
  }

  void write(const std::string& directory, const std::string& rank) {
    const std::lock_guard lock(mutex_);
    const std::string path = fmt::format("{}/trace.{}.json", directory, rank);
    std::FILE* file = std::fopen(path.c_str(), "w");
    if (file == nullptr) {
      fmt::print(stderr, "gpu_trace: {}: cannot be written; name a directory in GPU_TRACE\n", path);
      return;
    }
    fmt::print(file, "[");
    const char* separator = "\n";
    for (const Event& e : events_) {
      fmt::print(file,
                 "{}{{\"name\":\"{}\",\"ph\":\"X\",\"pid\":{},\"tid\":{},\"ts\":{:.3f},"
                 "\"dur\":{:.3f},\"args\":{{\"bytes\":{}}}}}",
                 separator, e.name, rank, e.stream, static_cast<double>(e.start) * 1e-3,
                 static_cast<double>(e.end - e.start) * 1e-3, e.bytes);
      separator = ",\n";
    }
    fmt::print(file, "\n]\n");
    std::fclose(file);
  }

 private:
  std::mutex mutex_;
  std::deque<Event> events_;
};

// CUPTI calls back without a place to keep anything.
Trace& trace() {
  static auto* const trace = new Trace;  // outlives every exit handler
  return *trace;
}

// "void ns::kernel<float>(args)" -> "kernel"
std::string short_name(const char* mangled) {
  int status = 0;
  char* demangled = abi::__cxa_demangle(mangled, nullptr, nullptr, &status);
  std::string name = status == 0 ? demangled : mangled;
  std::free(demangled);
  name = name.substr(0, name.find_first_of("(<"));
  if (const size_t space = name.rfind(' '); space != name.npos) name = name.substr(space + 1);
  if (const size_t colon = name.rfind("::"); colon != name.npos) name = name.substr(colon + 2);
  return name;
}

const char* name_of_copy(uint8_t kind) {
  switch (kind) {
    case CUPTI_ACTIVITY_MEMCPY_KIND_HTOD: return "copy in";
    case CUPTI_ACTIVITY_MEMCPY_KIND_DTOH: return "copy out";
    default: return "copy";
  }
}

void add(const CUpti_Activity* record) {
  switch (record->kind) {
    case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL: {
      const auto* k = reinterpret_cast<const CUpti_ActivityKernel10*>(record);
      return trace().add({short_name(k->name), k->start, k->end, k->streamId, 0});
    }
    case CUPTI_ACTIVITY_KIND_MEMCPY: {
      const auto* c = reinterpret_cast<const CUpti_ActivityMemcpy6*>(record);
      return trace().add({name_of_copy(c->copyKind), c->start, c->end, c->streamId, c->bytes});
    }
    case CUPTI_ACTIVITY_KIND_MEMSET: {
      const auto* m = reinterpret_cast<const CUpti_ActivityMemset4*>(record);
      return trace().add({"zero", m->start, m->end, m->streamId, m->bytes});
    }
    default: return;
  }
}

void CUPTIAPI give_buffer(uint8_t** buffer, size_t* size, size_t* most_records) {
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(64, kBufferBytes));
  *size = *buffer == nullptr ? 0 : kBufferBytes;
  *most_records = 0;  // as many as fit
}

void CUPTIAPI take_buffer(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t valid) {
  CUpti_Activity* record = nullptr;
  while (cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) add(record);
  std::free(buffer);
}

std::string variable(std::initializer_list<const char*> names, const char* otherwise) {
  for (const char* name : names) {
    if (const char* value = std::getenv(name); value != nullptr) return value;
  }
  return otherwise;
}

void finish() {
  cuptiActivityFlushAll(1);
  trace().write(variable({"GPU_TRACE"}, "."),
                variable({"OMPI_COMM_WORLD_RANK", "SLURM_PROCID"}, "0"));
}

}  // namespace

extern "C" int InitializeInjection() {
  constexpr std::array kinds = {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY,
                                CUPTI_ACTIVITY_KIND_MEMSET};
  bool works = cuptiActivityRegisterCallbacks(give_buffer, take_buffer) == CUPTI_SUCCESS;
  for (const CUpti_ActivityKind kind : kinds)
    works = works && cuptiActivityEnable(kind) == CUPTI_SUCCESS;
  if (!works) {
    fmt::print(stderr, "gpu_trace: CUPTI does not record here; nothing is traced\n");
    return 0;
  }
  std::atexit(finish);
  return 1;
}
