"""Weights in Hugging Face's forms: safetensors files, model directories, PEFT adapters. numpy alone, block by block."""
