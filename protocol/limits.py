"""Every limit of the wire, each with its unit, and the relations between them.

Values come from what trusted systems use and from measurements; `docs/protocol.md` repeats them for implementers, and a
test holds the two together.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# --- messages -----------------------------------------------------------------------------------------------------
MESSAGE_BYTES: Final = 512 * KIB
MESSAGE_BEFORE_LOGIN_BYTES: Final = 8 * KIB
HEARD_BEFORE_LOGIN_BYTES: Final = 64 * KIB  # all that one socket may say until it is logged in, HTTP included
MESSAGE_TO_HUB_ITEMS: Final = 16_384  # a full inventory has half as many; more would hold the hub up for longer
STRING_BYTES: Final = 4 * KIB
IDENTIFIER_CHARACTERS: Final = 128
NAME_CHARACTERS: Final = 64
TEXT_CHARACTERS: Final = 1024
LIST_ITEMS: Final = 4_096
MAP_ITEMS: Final = 64
NESTING_DEPTH: Final = 8
TARGETS_PER_SYNC: Final = 2_000
ROWS_PER_PAGE: Final = 200
INVENTORY_PROGRAMS: Final = 1_024
INSTALLING_AT_ONCE: Final = 16
INBOX_ROWS: Final = 256
TAGS_PER_TERMINAL: Final = 16
JOIN_KEY_CHARACTERS: Final = 128
TOKEN_BYTES: Final = 4_096  # of an identity provider's token; it has to fit a message before login

# --- objects and chunks -------------------------------------------------------------------------------------------
OBJECT_BYTES: Final = 4 * GIB
CHUNK_MINIMUM_BYTES: Final = 4 * KIB
CHUNK_AVERAGE_BYTES: Final = 16 * KIB
CHUNK_MAXIMUM_BYTES: Final = 64 * KIB
SMALL_OBJECT_BYTES: Final = 128 * MIB  # up to here the three sizes above hold; they double with every doubling
CHUNK_SIZE_DOUBLINGS: Final = 2
MANIFEST_ENTRIES: Final = 300_000
MANIFEST_ENTRY_BYTES: Final = 40  # 32 digest, 4 raw size, 4 stored size
MANIFEST_PAGE_ENTRIES: Final = 4_096
WANT_RUNS: Final = 1_024
SIDECAR_BYTES: Final = 64 * KIB
RULES_BYTES: Final = 4 * MIB  # of a rule set
POSTURE_BYTES: Final = 64 * KIB  # of one report
POSTURE_FINDINGS: Final = 64  # in one report; of more only the number

# --- transfer -----------------------------------------------------------------------------------------------------
FRAME_BYTES: Final = 256 * KIB  # pack bytes in one `chunks` message
FRAME_FIRST_BYTES: Final = 64 * KIB  # until the first acknowledgement says how fast the link is
FRAME_SMALLEST_BYTES: Final = 4 * KIB
FRAME_SECONDS: Final = 1.0  # what one frame should take on the link; each costs the hub the same, large or small
WINDOW_FIRST_FRAMES: Final = 2
WINDOW_LARGEST_FRAMES: Final = 16
WINDOW_GROWS_BELOW_SECONDS: Final = 2.0  # data in flight at the measured rate

# --- queues -------------------------------------------------------------------------------------------------------
OUTBOUND_CONTROL_MESSAGES: Final = 64
INBOUND_MESSAGES: Final = 4
REQUESTS_UNDER_WAY: Final = 16

# --- time ---------------------------------------------------------------------------------------------------------
OPENING_SECONDS: Final = 5.0
LOGIN_SECONDS: Final = 5.0
PING_EVERY_SECONDS: Final = 25.0
HEARD_WITHIN_SECONDS: Final = 10.0
SEND_SECONDS: Final = 20.0
DEVICE_CHANGES_EVERY_SECONDS: Final = 0.25
SYNC_UPDATES_EVERY_SECONDS: Final = 0.5
UPLOAD_IDLE_SECONDS: Final = 120.0  # no page and no frame of what the hub asked for: the upload is given up
PRESENCE_GRACE_SECONDS: Final = 5.0
PAIRING_SECONDS: Final = 600.0
RECONNECT_FIRST_SECONDS: Final = 1.0
RECONNECT_LARGEST_SECONDS: Final = 60.0
RESTART_SPREAD_SECONDS: Final = 10.0  # over which terminals spread their return after close 1012
RETRY_AFTER_SMALLEST_SECONDS: Final = 1.0
RETRY_AFTER_LARGEST_SECONDS: Final = 5.0

# --- keys ---------------------------------------------------------------------------------------------------------
NONCE_BYTES: Final = 32
RUN_BYTES: Final = 16  # what one run of a terminal's program is known by
PAIRING_CODE_CHARACTERS: Final = 8
KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
DIGEST_BYTES: Final = 32

assert CHUNK_MINIMUM_BYTES <= CHUNK_AVERAGE_BYTES <= CHUNK_MAXIMUM_BYTES
assert CHUNK_MAXIMUM_BYTES << CHUNK_SIZE_DOUBLINGS <= FRAME_BYTES, "one chunk always fits one frame"
assert FRAME_SMALLEST_BYTES <= FRAME_FIRST_BYTES <= FRAME_BYTES
assert FRAME_BYTES + STRING_BYTES <= MESSAGE_BYTES
assert MANIFEST_PAGE_ENTRIES * MANIFEST_ENTRY_BYTES + STRING_BYTES <= MESSAGE_BYTES
assert OBJECT_BYTES // (CHUNK_MINIMUM_BYTES << CHUNK_SIZE_DOUBLINGS) <= MANIFEST_ENTRIES
assert SMALL_OBJECT_BYTES // CHUNK_MINIMUM_BYTES <= MANIFEST_ENTRIES
assert MESSAGE_BEFORE_LOGIN_BYTES <= MESSAGE_BYTES
assert WINDOW_FIRST_FRAMES <= WINDOW_LARGEST_FRAMES
assert TARGETS_PER_SYNC <= LIST_ITEMS
assert PING_EVERY_SECONDS + HEARD_WITHIN_SECONDS <= 37
