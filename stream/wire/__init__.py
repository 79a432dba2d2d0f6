"""What any producer may send: events and catalogue items as JSON or msgpack, one or many in a record."""
