"""The lab of text2token: other methods on the same text, backbone and token budget, all on one leaderboard."""
