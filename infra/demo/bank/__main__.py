"""Start the bank: `python -m infra.demo.bank --port 0`."""

from infra.demo.bank.app import main

main()
