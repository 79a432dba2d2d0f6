"""The cuckoo index: int64 key → int32 row. One bucket, batches over buckets, displacement and splits, growth."""
