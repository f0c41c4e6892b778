"""Text from a model that stands whole on one device: a cache of keys and values, one token a step.

weights.py     the model as generation wants it: one type, adapters merged
cache.py       what attention keeps of earlier tokens, and how it looks at it
sampling.py    which token comes next
decoding.py    one token for every row; on a GPU compiled, and replayed as one CUDA graph
generator.py   prompts in, tokens out
"""

from nemorun.llm.generation.generator import Generator, generate

__all__ = ["Generator", "generate"]
