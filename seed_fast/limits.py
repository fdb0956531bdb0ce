"""Upper limits on the time and memory that one input may cost (docs/tokenize.md).

An input that exceeds one is named, and skipped or refused. The limits are far above what photographs, captions and
configs need, so that only damaged or hostile files reach them.
"""

from __future__ import annotations

MiB = 1 << 20

ITEM_SECONDS = 20.0  # to read, decode and resize one image
MAX_FILE_BYTES = 1024 * MiB  # one image file or member of a plain shard; one list that is read as a whole (.json)
MAX_MEMBER_BYTES = 256 * MiB  # one unpacked member of a compressed shard, or a sparse one: it is held in memory
IN_FLIGHT_BYTES = 512 * MiB  # unpacked members on their way to the workers, together
MAX_LINE_BYTES = 16 * MiB  # one line of a list; one caption or .json member
MAX_CONFIG_BYTES = 16 * MiB  # a config.json, and whatever describes a run
MAX_PICKLE_BYTES = MiB  # one official pre-tokenised sample
MAX_SIDE = 1 << 20  # px of the longer side: a filter for the resize takes memory by its length
MAX_SCANS = 100  # scans of a progressive JPEG: encoders write about ten, and each costs as much as a whole decode
MAX_MESSAGE = 80  # characters of a foreign value that a message shows
