import pytest

from threadmill.webhooks.addresses import is_public


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::808:808"]
)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",  # where clouds keep the machine's credentials
        "100.64.0.1",  # carriers' NAT
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a00:1",  # 10.0.0.1 behind NAT64
        "64:ff9b::7f00:1",
        "64:ff9b:1::a00:1",
        "2002:a00:1::",  # 10.0.0.1 by 6to4
        "2001:0:a00:1::",  # Teredo
        "fc00::1",
        "fd00:ec2::254",  # a cloud's metadata again
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
    ],
)
def test_addresses_of_other_networks_are_not(address: str) -> None:
    assert not is_public(address)
