"""What the services carry: the messages, and how they stand on their topics. Data only, without input or output."""

from contracts.person import PEOPLE

STREAMS = (PEOPLE,)
"""The streams of this pair."""
