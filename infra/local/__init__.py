"""Embedded servers, key material and process supervision for `make demo` and `make test`; nothing here runs in production."""
