#include "nibble/data/column_map.h"

#include <gtest/gtest.h>

#include "nibble/base/error.h"

namespace nibble::data::column_map_test {
namespace {

ColumnMap map_of(const std::vector<std::string>& entries) { return ColumnMap::parse(entries); }

std::string applied(const std::vector<std::string>& entries, const std::string& row) {
  return map_of(entries).apply(parse_row(row)).dump();
}

TEST(ColumnMap, MakesAChatOfColumns) {
  EXPECT_EQ(applied({"question=user", "answer=assistant"}, R"({"question": "q", "answer": "a", "text": "left out"})"),
            R"({"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]})");
  EXPECT_EQ(applied({"a=assistant", "s=system", "q=user"}, R"({"q": "q", "a": "a", "s": "be brief", "tools": "[]"})"),
            R"({"messages":[{"role":"system","content":"be brief"},{"role":"user","content":"q"},{"role":"assistant","content":"a"}],"tools":"[]"})");
  EXPECT_EQ(applied({"a=assistant", "s=system", "q=user"}, R"({"q": "q", "a": "a", "s": ""})"),
            R"({"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]})");
}

TEST(ColumnMap, RenamesTheKeysOfForms) {
  EXPECT_EQ(applied({"x=prompt", "y=completion"}, R"({"x": "1", "y": "2", "prompt": "3"})"), R"({"prompt":"1","completion":"2"})");
  EXPECT_EQ(applied({"body=text"}, R"({"body": "t", "prompt": "p", "completion": "c"})"), R"({"text":"t"})");
  EXPECT_EQ(applied({"p=prompt", "better=chosen", "worse=rejected"}, R"({"better": "b", "worse": "w", "p": "q"})"),
            R"({"prompt":"q","chosen":"b","rejected":"w"})");
  EXPECT_EQ(applied({"review=input", "stars=label"}, R"({"review": "r", "stars": 5})"), R"({"input":"r","label":5})");
  EXPECT_EQ(applied({"a=b=text"}, R"({"a=b": "t"})"), R"({"text":"t"})");  // the last sign divides
}

TEST(ColumnMap, NamesWhatIsMissing) {
  try {
    applied({"question=user", "answer=assistant"}, R"({"frage": "q", "answer": "a"})");
    ADD_FAILURE();
  } catch (const DataError& error) {
    EXPECT_NE(std::string(error.what()).find("no column \"question\", which --map takes for user; it has frage, answer"),
              std::string::npos)
        << error.what();
  }
  EXPECT_THROW(applied({"q=user", "a=assistant"}, R"({"q": "q", "a": null})"), DataError);
}

TEST(ColumnMap, IsRefusedWhereItMakesNoRow) {
  for (const std::vector<std::string>& entries :
       {std::vector<std::string>{"question"}, {"=user"}, {"q=human"}, {"q=user"}, {"q=user", "r=user", "a=assistant"},
        {"q=user", "a=assistant", "t=text"}}) {
    EXPECT_THROW(map_of(entries), UsageError) << entries[0];
  }
  EXPECT_TRUE(map_of({}).empty());
  EXPECT_EQ(map_of({"q=user", "a=assistant"}).text(), "q=user,a=assistant");
}

}  // namespace
}  // namespace nibble::data::column_map_test
