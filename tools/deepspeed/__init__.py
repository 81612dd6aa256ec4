"""The configuration files of Accelerate and DeepSpeed, as sections of input.toml.

keys (what the files say), translation (key by key), reasons (why a key has no counterpart), input_text (the file written).
"""
