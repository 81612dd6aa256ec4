// JSON: what is refused, that integers stay integers, and that written numbers read back the same.
#include "io/json.h"

#include <bit>
#include <cmath>
#include <limits>

#include "io_files.h"

namespace utrain {
namespace {

Json parse(const std::string& text) {
  return parse_json(text, "place.json");
}

TEST(Json, ReadsEveryKindOfValueInOrder) {
  const Json json = parse(R"( {"z": null, "a": [true, false], "s": "h\u00e9\n", "o": {}} )");
  ASSERT_TRUE(json.is_object());
  EXPECT_EQ(json.as_object()[0].first, "z");
  EXPECT_TRUE(json.find("z")->is_null());
  EXPECT_TRUE(json.find("a")->as_array()[0].as_bool());
  EXPECT_FALSE(json.find("a")->as_array()[1].as_bool());
  EXPECT_EQ(json.find("s")->as_string(), "h\xC3\xA9\n");
  EXPECT_TRUE(json.find("o")->as_object().empty());
  EXPECT_EQ(json.find("absent"), nullptr);
}

TEST(Json, IntegerTokensStayApartFromNumbers) {
  const Json json = parse(
      "[0, -1, 9223372036854775807, 18446744073709551615, 4.0, 1e3, -0, "
      "18446744073709551616, -9223372036854775809]");
  const Json::Array& v = json.as_array();
  EXPECT_EQ(v[0].as_int64(), 0);
  EXPECT_EQ(v[1].as_int64(), -1);
  EXPECT_EQ(v[2].as_int64(), std::numeric_limits<int64_t>::max());
  EXPECT_TRUE(v[3].is_integer() && v[3].is_large_integer());
  EXPECT_EQ(v[3].as_large_integer(), std::numeric_limits<uint64_t>::max());
  for (size_t i = 4; i < v.size(); ++i) EXPECT_FALSE(v[i].is_integer()) << i;
  EXPECT_EQ(v[4].as_double(), 4.0);
  EXPECT_EQ(v[5].as_double(), 1000.0);
  EXPECT_EQ(v[7].as_double(), 0x1p64);
}

TEST(Json, RefusesWhatIsNotExactlyOneValue) {
  const std::string nested_65 = std::string(65, '[') + std::string(65, ']');
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "byte"},
      {"{", "byte"},
      {"{}x", "byte 3"},
      {"{} {}", "byte"},
      {R"({"a":1,"b":2,"a":3})", "\"a\" found twice"},
      {R"({"o":{"k":1,"k":1}})", "\"k\" found twice"},
      {"[1,]", "byte"},
      {"[NaN]", "byte"},
      {"[Infinity]", "byte"},
      {"[1e999]", "byte"},
      {"[01]", "byte"},
      {"[+1]", "byte"},
      {"['a']", "byte"},
      {"[1] // comment", "byte"},
      {"\xEF\xBB\xBF{}", "byte order mark"},
      {std::string("{}\0x", 4), "byte 2: NUL"},
      {std::string("[\"a\0b\"]", 7), "NUL"},
      {"[\"\xFF\"]", "byte"},
      {"[\"\xC0\xAF\"]", "byte"},
      {"[\"\xED\xA0\x80\"]", "byte"},
      {"[\"\xF4\x90\x80\x80\"]", "byte"},
      {R"(["\ud800"])", "byte"},
      {"[\"tab\there\"]", "byte"},
      {nested_65, "64 levels"},
      {std::string(1000000, '['), "64 levels"},
  };
  for (const auto& [text, word] : cases) {
    expect_refused([&] { parse(text); }, ExitCode::bad_file, {"place.json: ", word});
  }
  EXPECT_NO_THROW(parse(std::string(64, '[') + std::string(64, ']')));
  expect_refused([] { parse_json("]", "x", ExitCode::usage); }, ExitCode::usage, {"x: "});
}

TEST(Json, LimitsTheNumberOfValues) {
  const JsonLimits limits = {.depth = 64, .values = 4};
  EXPECT_NO_THROW(parse_json("[1,2,3]", "x", ExitCode::bad_file, limits));
  expect_refused([&] { parse_json("[1,2,3,4]", "x", ExitCode::bad_file, limits); },
                 ExitCode::bad_file, {"more than 4 JSON values"});
}

TEST(Json, FindsADuplicateAmongManyKeys) {
  std::string text = "{";
  for (int i = 0; i < 100000; ++i) text += fmt::format("\"k{}\":0,", i);
  EXPECT_NO_THROW(parse(text + "\"last\":0}"));
  expect_refused([&] { parse(text + "\"k77\":0}"); }, ExitCode::bad_file, {"\"k77\" found twice"});
}

TEST(Json, WritesTheShortestTextThatReadsBack) {
  const Json json = Json::object()
                        .set("i", -3)
                        .set("u", std::numeric_limits<uint64_t>::max())
                        .set("whole", 4.0)
                        .set("tenth", 0.1)
                        .set("inf", std::numeric_limits<double>::infinity())
                        .set("nan", std::nan(""))
                        .set("s", "a\"\\\n\x01\xC3\xA9")
                        .set("e", Json::array())
                        .set("l", Json::array().push_back(true).push_back(Json()));
  EXPECT_EQ(to_text(json),
            "{\"i\":-3,\"u\":18446744073709551615,\"whole\":4.0,\"tenth\":0.1,\"inf\":null,"
            "\"nan\":null,\"s\":\"a\\\"\\\\\\n\\u0001\xC3\xA9\",\"e\":[],\"l\":[true,null]}");
  EXPECT_EQ(to_text(parse(to_text(json))), to_text(json));
  EXPECT_EQ(
      to_pretty_text(Json::object().set("a", Json::array().push_back(1)).set("o", Json::object())),
      "{\n  \"a\": [\n    1\n  ],\n  \"o\": {}\n}");
  EXPECT_EQ(to_text(Json::object().set("a", 1).set("a", 2)), "{\"a\":2}");
  EXPECT_EQ(to_text(Json("\xFF")), "\"\xEF\xBF\xBD\"");
}

TEST(Json, DoublesSurviveWritingAndReading) {
  uint64_t state = 1;
  for (int i = 0; i < 20000; ++i) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    const double x = std::bit_cast<double>(state);
    if (!std::isfinite(x)) continue;
    const Json back = parse(to_text(Json(x)));
    ASSERT_FALSE(back.is_integer());
    ASSERT_EQ(back.as_double(), x);
  }
}

TEST(JsonObjectReader, NamesPlaceKeyAndBothSides) {
  const Json json = parse(R"({"n":4.0,"s":"x","b":1,"l":["a",2],"o":[],"z":null,"big":9})");
  const JsonObjectReader reader(json, "c.json");
  const auto refused = [](auto call, const std::string& text) {
    expect_refused(call, ExitCode::bad_file, {text});
  };
  refused([&] { reader.integer("n", 0, 9); },
          "c.json: n: number 4.0 found, an integer from 0 to 9 wanted; ");
  refused([&] { reader.integer("big", 0, 8); },
          "c.json: big: integer 9 found, an integer from 0 to 8");
  refused([&] { reader.integer("absent", 0, 8); }, "c.json: absent: nothing found");
  refused([&] { reader.number("s"); }, "c.json: s: string \"x\" found, a number wanted");
  refused([&] { reader.boolean("b"); }, "c.json: b: integer 1 found, true or false wanted");
  refused([&] { reader.string("n"); }, "c.json: n: number 4.0 found, a string wanted");
  refused([&] { reader.strings("l"); }, "c.json: l: element 1 is integer 2");
  refused([&] { reader.strings("s"); }, "c.json: s: string \"x\" found, an array of strings");
  refused([&] { reader.object("o"); }, "c.json: o: array of 0 found, an object wanted");
  refused([&] { reader.at("z"); }, "c.json: z: nothing found");
  EXPECT_FALSE(reader.has("z"));
  EXPECT_EQ(reader.integer_or("z", 0, 9, 5), 5);
  EXPECT_EQ(reader.number("big"), 9.0);
  EXPECT_EQ(reader.number_or("absent", 0.5), 0.5);
  EXPECT_TRUE(reader.boolean_or("absent", true));
  EXPECT_EQ(reader.string_or("absent", "f"), "f");
  expect_refused([] { JsonObjectReader(Json(1), "c.json", ExitCode::usage); }, ExitCode::usage,
                 {"c.json: integer 1 found, an object wanted"});
}

TEST(Json, LongStringsAreCutInMessages) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += "\xC3\xA9";
  EXPECT_LT(describe(Json(text)).size(), 100u);
  expect_refused([&] { parse("[\"" + text + "\xFF\"]"); }, ExitCode::bad_file, {"place.json"});
}

}  // namespace
}  // namespace utrain
