"""Fault rounds: a sale under load, one fault, and the books afterwards.

    python -m tests.faults                                  every fault in both modes, once
    python -m tests.faults --rounds 300 --resume            the long run; goes on where it ended
    python -m tests.faults --seed 7 --fault 4 --mode fast   one round again

A round opens a sale on a running product, loads it from a process of its own that writes down every
call, strikes at a random moment of its seed, heals, lets the sale drain and close, and holds what
the clients were told against the ledger. PostgreSQL and Valkey are the embedded ones, run here the
way an operator's init system would; the product reaches them through proxies.

* `shim.c`, `shim`      what a power cut, a full disk and a wrong clock do to a process
* `proxy`               what a network does to a connection
* `system`              the servers, the proxies and the product
* `crowd`               the load and its history, a process of its own
* `strikes`, `catalogue`  the faults
* `rounds`              one round and its verdict
* `report`              docs/proof.md
"""
