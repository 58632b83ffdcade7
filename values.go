package heliotrope

import (
	"crypto/sha256"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Duration is a time.Duration written as Go writes it: 40ms, 1m30s.
type Duration time.Duration

func (d Duration) String() string               { return time.Duration(d).String() }
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil || v < 0 {
		return fmt.Errorf("%q is no duration: write a number and a unit, like 40ms or 1.5s", text)
	}
	*d = Duration(v)
	return nil
}

// BitRate is in bits per second, written with a decimal unit: 100Mbit, 2.5Gbit, 64kbit.
type BitRate uint64

var rateUnits = []struct {
	suffix string
	factor float64
}{{"Gbit", 1e9}, {"Mbit", 1e6}, {"kbit", 1e3}, {"bit", 1}}

func (r BitRate) String() string {
	for _, u := range rateUnits {
		if float64(r) >= u.factor {
			return strconv.FormatFloat(float64(r)/u.factor, 'f', -1, 64) + u.suffix
		}
	}
	return "0bit"
}

func (r BitRate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

func (r *BitRate) UnmarshalText(text []byte) error {
	for _, u := range rateUnits {
		digits, ok := strings.CutSuffix(string(text), u.suffix)
		if !ok {
			continue
		}
		v, err := strconv.ParseFloat(digits, 64)
		if err != nil || !(v >= 0 && v*u.factor <= 1e15) {
			break
		}
		*r = BitRate(math.Round(v * u.factor)) // 2.3Gbit is not exactly 2.3e9 in binary
		return nil
	}
	return fmt.Errorf("%q is no bit rate: write a number and a unit, like 100Mbit or 2.5Gbit", text)
}

// MAC is an Ethernet address.
type MAC [6]byte

func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}
func (m MAC) IsZero() bool                 { return m == MAC{} }
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

func (m *MAC) UnmarshalText(text []byte) error {
	pairs := strings.FieldsFunc(string(text), func(r rune) bool { return r == ':' || r == '-' })
	var mac MAC
	ok := len(pairs) == len(mac)
	for i := 0; ok && i < len(mac); i++ {
		b, err := strconv.ParseUint(pairs[i], 16, 8)
		ok = err == nil && len(pairs[i]) == 2
		mac[i] = byte(b)
	}
	if !ok {
		return fmt.Errorf("%q is no MAC address: write six hex pairs, like 02:00:00:00:00:01", text)
	}
	*m = mac
	return nil
}

// GatewayMAC answers for every gateway address at every host, so that a guest's
// ARP entry stays right wherever it goes.
var GatewayMAC = MAC{0x02, 'h', 'e', 'l', 'i', 'o'}

// PublicMAC is the address of br-int on the uplink of host h.
func PublicMAC(h HostID) MAC { return derivedMAC("host/" + string(h)) }

// NICMAC is the address of a VM's i-th NIC where the topology names none.
func NICMAC(vm VMID, i int) MAC { return derivedMAC("vm/" + string(vm) + "/" + strconv.Itoa(i)) }

// derivedMAC is a locally administered unicast address that depends on name alone.
func derivedMAC(name string) MAC {
	sum := sha256.Sum256([]byte(name))
	m := MAC(sum[:6])
	m[0] = m[0]&^0x03 | 0x02
	return m
}

// VMUUID is the identity of a VM's domain at every hypervisor. It depends on the VM's
// name alone, so that hosts and controller know it without asking each other.
func VMUUID(vm VMID) string { return derivedUUID("vm/" + string(vm)) }

// InterfaceID names a VM's i-th NIC in Open vSwitch: external_ids:iface-id of its port.
func InterfaceID(vm VMID, i int) string {
	return derivedUUID("vm/" + string(vm) + "/nic/" + strconv.Itoa(i))
}

// derivedUUID is an RFC 9562 UUID of version 8 that depends on name alone.
func derivedUUID(name string) string {
	sum := sha256.Sum256([]byte("heliotrope/" + name))
	sum[6] = sum[6]&0x0f | 0x80
	sum[8] = sum[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", sum[0:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}
