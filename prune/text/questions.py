"""Questions that a chat model is judged on: plain ones, of many kinds, which calibration never contains.

They are as people ask them: what a drawn question is about depends on the model, and a small one draws many that have
no answer.
"""

import re

PLAIN = (
    "What is the capital of France?",
    "What is the largest planet in the solar system?",
    "Who wrote Romeo and Juliet?",
    "How many days are there in a leap year?",
    "What is the boiling point of water at sea level?",
    "Name three primary colours.",
    "What language is spoken in Brazil?",
    "What do bees make?",
    "Why is the sky blue?",
    "Why do we have seasons?",
    "How does a refrigerator keep food cold?",
    "What causes the tides?",
    "How do vaccines work?",
    "Why does ice float on water?",
    "What is photosynthesis?",
    "What is the difference between a virus and a bacterium?",
    "What is 17 plus 25?",
    "If a train travels 60 miles in one hour, how far does it travel in three hours?",
    "A shirt costs 20 dollars and is reduced by 25 percent. What is its new price?",
    "What comes next: 2, 4, 8, 16?",
    "Write a short poem about the sea.",
    "Tell me a story about a fox who cannot sleep.",
    "Write a birthday message for my grandmother.",
    "Suggest a title for a book about a lost lighthouse.",
    "Describe a rainy afternoon in two sentences.",
    "Write a polite email asking to move a meeting to Friday.",
    "Explain what a loop is in programming.",
    "Write a Python function that returns the larger of two numbers.",
    "How do I reverse a string in Python?",
    "What does HTML stand for?",
    "What is a database?",
    "How do I boil an egg?",
    "Give me a simple recipe for tomato soup.",
    "What can I cook with rice and beans?",
    "How often should I water a cactus?",
    "How can I fall asleep faster?",
    "Give me three tips for a job interview.",
    "How do I remove a coffee stain from a shirt?",
    "What should I pack for a weekend at the beach?",
    "How can I save money on groceries?",
    "Who was Albert Einstein?",
    "What happened in 1969 on the Moon?",
    "What was the Roman Empire?",
    "What is democracy?",
    "Translate good morning into Spanish.",
    "Correct this sentence: she don't like apples.",
    "Give me a synonym for happy.",
    "Summarise in one sentence what a library is for.",
)


UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"  # Thai, Japanese, Chinese
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")


def plain_words(text: str) -> tuple[str, ...]:
    """Return the words of a text in small letters, where a script has no spaces its letters.

    Two questions with the same words are the same.
    """
    return tuple(WORD.findall(text.lower()))


HELD_OUT = frozenset(map(plain_words, PLAIN))
