// That a token data set was made with the tokenizer of the model: another one with as many tokens
// would train on noise, and no number would tell.
#pragma once

#include <string>

#include "data/token_data_set.h"

namespace utrain {

// bad_file where data tells the hash of its tokenizer.json and model_dir has another one; fine where
// either does not exist.
void check_tokenizer(const TokenDataSet& data, const std::string& model_dir);

}  // namespace utrain
