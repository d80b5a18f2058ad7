"""The forms in which SEED-X puts pictures, questions and instructions to its language model (official files:
`src/data/*.py`, `src/inference/*.py`)."""

READING = "Question: {question}\nAnswer:"
INSTRUCTION = "[INST] {instruction} [/INST]\n"
DESCRIBE, LOCATE = "what is there?", "what is there and where?"
