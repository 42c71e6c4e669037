"""Where the images of a request come from: its data URLs, or the network; they are decoded in other processes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from PIL import Image

from models.pixels import ImageFile
from server.errors import BadRequest
from server.media.budget import DecodeMemory, Work
from server.media.decoder import Decoders
from server.media.fetch import Fetcher, FetchFailed, SystemResolver, is_remote
from server.media.files import MediaError, read_data_url
from server.settings.schema import Settings


class Images:
    """One server's way to images: a fetcher, where the settings allow domains, and the decoders."""

    def __init__(self, settings: Settings, fetcher: Fetcher | None = None) -> None:
        self._max_bytes = settings.max_image_bytes
        self._max_pixels = settings.max_request_pixels
        self._seconds = settings.decode_seconds
        self._memory = DecodeMemory(settings.decode_memory_bytes)
        self._decoders = Decoders(
            settings.prepare_threads,
            max_bytes=settings.max_image_bytes,
            max_pixels=settings.max_image_pixels,
            seconds=settings.decode_seconds,
        )
        self._resolver = SystemResolver(settings.media.fetches)
        self._fetcher = fetcher
        if fetcher is None and settings.media.allowed_domains:
            self._fetcher = Fetcher(
                settings.media,
                max_bytes=settings.max_image_bytes,
                max_total=settings.max_body_bytes,  # what the same images could have in the body
                resolve=self._resolver,
            )

    def start(self) -> None:
        """Start the decoders. Blocks, briefly."""
        self._decoders.start()

    async def of(self, urls: Mapping[str, str]) -> RequestImages:
        """One request's images, by the path of the field that names each. Raises BadRequest for one not fetched."""
        remote = [url for url in urls.values() if is_remote(url)]
        fetched: Mapping[str, bytes] = {}
        if self._fetcher is not None and remote:
            try:
                fetched = await self._fetcher.fetch_all(remote)
            except FetchFailed as failure:
                param = next(param for param, url in urls.items() if url == failure.url)
                raise _invalid(param, failure.reason) from failure
        work = Work(self._max_pixels, self._seconds, self._memory)
        return RequestImages(urls, fetched, self._max_bytes, self._decoders, work)

    def close(self) -> None:
        """End the decoders."""
        self._decoders.close()
        self._resolver.close()


@dataclass(frozen=True)
class RequestImages:
    """The images of one request, encoded as they came. What decoding them holds is held until `close`."""

    urls: Mapping[str, str]
    fetched: Mapping[str, bytes]
    max_bytes: int
    decoders: Decoders
    work: Work

    def file(self, param: str) -> ImageFile:
        """The image that a field names; it is upright and RGB once decoded. Blocks. Both raise BadRequest."""
        url = self.urls[param]
        try:
            data = self.fetched[url] if url in self.fetched else read_data_url(url, self.max_bytes)
        except MediaError as error:
            raise _invalid(param, error) from error
        digest = hashlib.sha256(data).digest()
        return ImageFile(digest, partial(self._decode, param, data), partial(self._measure, param, data))

    def close(self) -> None:
        """Give back what is held: what was made of the images is done."""
        self.work.close()

    def _measure(self, param: str, data: bytes) -> tuple[int, int]:
        try:
            size = self.decoders.measure(data)
            self.work.count(param, size)
        except MediaError as error:
            raise _invalid(param, error) from error
        return size

    def _decode(self, param: str, data: bytes) -> Image.Image:
        try:
            image = self.work.timed(partial(self.decoders.decode, data))
            self.work.count(param, image.size)
        except MediaError as error:
            raise _invalid(param, error) from error
        return image


def _invalid(param: str, error: MediaError) -> BadRequest:
    return BadRequest(f"Invalid image in '{param}': {error}.", param=param, code="invalid_image")
