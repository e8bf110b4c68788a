"""What a reply states, and whether it is right: a choice, a number, mathematics, words. Used by rewards and evals.

    choice.is_right("It's B", "B", ["dog", "cat"])          # True
    number.is_right("答案是2", "2")                          # True
    maths.judge(r"\\boxed{\\frac{1}{2}}", "0.5")            # Verdict.RIGHT
    words.is_right("**Dog**", "a dog")                      # True

All of them read a reply in one normal form (normal.py) and by one notion of what it states (statement.py).
"""

from stepaudio_jax.scoring import choice, maths, number, words

__all__ = ["choice", "maths", "number", "words"]
