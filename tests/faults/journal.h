// What the ranks did to files of the run directory, one line each in STATE/journal.RANK, so that a
// power cut can take back what was not synced. The fields are separated by tabs; no path of the
// tests holds one. What makes or changes is noted before it is done, what makes it durable after.
#pragma once

#include <cstdint>
#include <sstream>
#include <string>

namespace utrain {

struct JournalLine {
  int64_t time = 0;     // ns of a clock that all ranks of a host share
  std::string what;     // write truncate sync create mkdir rename exchange unlink rmdir
  uint64_t inode = 0;   // of what is written or synced; of the parent of path, for names
  uint64_t inode2 = 0;  // rename: of the parent of path2
  int64_t begin = 0, bytes = 0;
  std::string path, path2;
  std::string kept;  // a link in STATE to the file that this name stood for

  std::string text() const {
    std::ostringstream out;
    out << time << '\t' << what << '\t' << inode << '\t' << inode2 << '\t' << begin << '\t' << bytes
        << '\t' << path << '\t' << path2 << '\t' << kept << '\n';
    return out.str();
  }
  static JournalLine parse(const std::string& text) {
    JournalLine line;
    std::istringstream in(text);
    const auto field = [&] {
      std::string word;
      std::getline(in, word, '\t');
      return word;
    };
    line.time = std::stoll(field());
    line.what = field();
    line.inode = std::stoull(field());
    line.inode2 = std::stoull(field());
    line.begin = std::stoll(field());
    line.bytes = std::stoll(field());
    line.path = field();
    line.path2 = field();
    line.kept = field();
    return line;
  }
};

}  // namespace utrain
