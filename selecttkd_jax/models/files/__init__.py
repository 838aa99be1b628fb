"""Models on disk: Hugging Face directories, GGUF files and PEFT adapters, read and written."""
