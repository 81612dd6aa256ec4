"""Token data sets: from conversations in JSON lines to the HDF5 file that utrain trains on.

One module a question: records (what is in the input file), chat_template (how the model writes a conversation),
reply_spans (which characters of it are replies), encoding (which tokens, which of them targets), token_file (HDF5).
"""

VERSION = "0.1.0"
