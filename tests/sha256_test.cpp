// SHA-256 against the values of FIPS 180-4's examples and of sha256sum, at every length of padding.
#include "core/sha256.h"

#include <gtest/gtest.h>

namespace utrain {
namespace {

TEST(Sha256, ExamplesOfTheStandard) {
  EXPECT_EQ(sha256(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(sha256(std::string(1000000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

// The hash of the hashes of 0 to 199 bytes 'x'.
TEST(Sha256, EveryLengthOfTheLastBlock) {
  std::string hashes;
  for (size_t n = 0; n < 200; ++n) hashes += sha256(std::string(n, 'x'));
  EXPECT_EQ(sha256(hashes), "f61ffcc417e1f0e59eba2da7fa32fbe05b64e478b68c6bacf990455f00248b98");
}

}  // namespace
}  // namespace utrain
