"""The network: how a packet gets in and out.

Read in this order:

    bridge          a bridge, a veth pair, addresses, names
    firewall        NAT, published ports, and what two bridges may not say to each other
    beside_docker   what Docker's own rules need, so that our packets pass
"""
