"""The words of the report: what the arms are, what was dropped and why, how to read it, what it does not show."""

ARM_MEANING = {
    "online": "learns every tick; what a replica serves",
    "nightly": "the same net, retrained each midnight, with live counters",
    "frozen": "the nightly net with the counters of midnight: a nightly batch pipeline",
    "popularity": "recent click rate of the item, nothing else",
    "oracle": "the generator's true click probability; no model can do better",
}

DROP_MEANING = {
    "future": "its own time lies beyond the moment it came in: a wrong clock",
    "late_impression": "it came in after its tick was closed",
    "duplicate_impression": "an impression with this id was there before",
    "late": "an engagement after the attribution window",
    "orphan": "an engagement whose impression never came",
    "duplicate_engagement": "the same engagement was there before",
    "unknown_item": "an engagement with an item that was not shown",
    "malformed": "a record that could not be used; kept in dead-letters",
    "over_user_cap": "one user had more impressions in a tick than are learned (join.user_impressions)",
    "over_item_cap": "one user was shown an item more often in a tick than is learned (join.user_item_impressions)",
}

# Why a row of a file, or an event of a producer, is a dead letter.
DEAD_MEANING = {
    "too_long": "longer than any row can be",
    "not_utf8": "its bytes are not UTF-8 text",
    "columns": "another number of tab-separated columns",
    "empty_id": "an id is empty, or an item's holds a blank",
    "duplicate_item": "an earlier row of the file has its id",
    "id_too_long": "an id is longer than wire.max_id_bytes or 128 bytes",
    "bad_time": "no such time, or a year before 1974 or after 5137",
    "no_candidates": "nothing was shown",
    "label_missing": "a shown item lacks its -0 or -1",
    "bad_label": "a label is neither 0 nor 1",
    "duplicate_impression": "an earlier row of the file has its impression id; files joined into one begin again: "
    "give each a folder of its own",
    "time_gap": "its time is far from all others, see replay.max_gap_s: a wrong clock",
    "unusable_row": "an unknown kind or action, no items, or no time",
    "wrong_partition": "its user belongs to another partition",
    "repeated_item": "an item is shown twice in one impression: a label could not say which",
}

READING = (
    (
        "AUC, MRR, nDCG",
        "One value for each impression, then the mean, as the MIND benchmark defines them. Impressions with no click, "
        "or only clicks, have no order to judge and are left out. Ties count as the mean over their orders.",
    ),
    (
        "Pooled AUC",
        "One ranking of all shown items of all users; it also rewards knowing which users click.",
    ),
    (
        "NE",
        "Log-loss over the entropy of the click rate. 1 is what knowing the click rate alone gives; lower is better.",
    ),
    (
        "Calibration",
        "Predicted over observed clicks. Ranks use the score at the first position; log-loss, NE and calibration "
        "use the score at the position shown.",
    ),
    (
        "Honest by construction",
        "Everything is scored before it is learned. An impression shown in a tick is scored by the newest version"
        " that every replica was certain to hold by then, never by a luckier one, and so are its counters.",
    ),
    (
        "Label wait",
        "From an engagement to the close of the tick that learns it, in event time.",
    ),
    (
        "Sync",
        "From the trainer reading that a tick is closed to its version being servable, in wall time.",
    ),
)

REPLAY_LIMITS = (
    (
        "Replayed, not live",
        "The log shows what another recommender showed. A replay says how well clicks on those items are ranked, "
        "not what people would have clicked had this system chosen.",
    ),
    (
        "Simulated delays",
        "The log does not record when a click came; delays are drawn from a seeded distribution.",
    ),
    (
        "Speed",
        "At full speed days pass in seconds, so processes compete for cores and a version waits for its turn; "
        "sync at the speed of life is shorter.",
    ),
)
LIMITS = (
    *REPLAY_LIMITS,
    (
        "How sure",
        "Intervals draw scored hours as if each were independent of the next. They say how much another draw of such "
        "hours would move a difference, not what another log, season or seed would show.",
    ),
    (
        "The oracle",
        "Exists for generated logs only, and bounds ranking by probability: on a finite log luck adds noise to "
        "every arm.",
    ),
    (
        "Dense weights",
        "Move each night only; between nights embeddings, biases and counters learn.",
    ),
)
