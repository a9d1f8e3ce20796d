"""Read the images of a request when they are needed, because those of a large job do not fit into memory."""

from collections.abc import Callable, Iterator, Sequence
from typing import overload

from PIL import Image


class LazyImages(Sequence[Image.Image]):
    """A sequence of images of one size, each read every time that it is indexed."""

    def __init__(self, length: int, size: tuple[int, int], read: Callable[[int], Image.Image]):
        """size: width and height of every image. read: returns the image with a number, always the same one."""
        self.length, self.size, self.read = length, size, read

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, number: int) -> Image.Image: ...
    @overload
    def __getitem__(self, number: slice) -> list[Image.Image]: ...
    def __getitem__(self, number: int | slice) -> Image.Image | list[Image.Image]:
        if isinstance(number, slice):
            return [self[i] for i in range(self.length)[number]]
        return self.read(range(self.length)[number])

    def __iter__(self) -> Iterator[Image.Image]:
        return map(self.read, range(self.length))
