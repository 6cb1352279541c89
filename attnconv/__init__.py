"""attnconv: convolution or self-attention, for my data, at my size, on my machine?"""

from importlib.metadata import version

__version__ = version("attnconv")
