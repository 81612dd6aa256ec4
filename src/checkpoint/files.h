// The files of a checkpoint on disk: their names, sizes and hashes. A name is plain characters
// [A-Za-z0-9._-], or a directory and a file of such names; links are never followed.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/write.h"

namespace utrain {

inline constexpr int64_t kCheckpointFormat = 1;
inline constexpr int64_t kMaxCheckpointText = int64_t{64} << 20;  // bytes of manifest and state

std::string shard_name(int64_t rank, int64_t ranks);  // "shard-00000-of-00004.h5"
bool is_checkpoint_file_name(const std::string& name);
int64_t step_of_name(const std::string& name);  // of checkpoint_name(); -1 for any other

std::string xxh3_of(std::string_view bytes);  // XXH3-128, 32 hexadecimal digits

// Size and hash of dir/name, read from disk. What is no regular file fails with code.
FileFacts read_facts(const std::string& dir, const std::string& name, ExitCode code,
                     const FileSign& sign = {});
// The bytes of dir/name, at most max_bytes; fails with no_checkpoint.
std::string read_checkpoint_text(const std::string& dir, const std::string& name,
                                 int64_t max_bytes);

// Damage of a checkpoint, with what helps.
[[noreturn]] void fail_checkpoint(const std::string& where, const std::string& what);

}  // namespace utrain
