package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"heliotrope/topologies/lab/guest/record"
)

const pageSize = record.PageSize

// config is what the kernel's command line says.
type config struct {
	hostname        string
	nics            []nic
	workingSetPages int
	dirtyRate       int // pages a second
	diskRate        int // records a second
	peers           []string
}

type nic struct {
	mac     string // lower case, colons
	address netip.Prefix
	gateway netip.Addr // the zero Addr: none
	mtu     int        // 0: the device's own
}

func (c config) addresses() []netip.Addr {
	var all []netip.Addr
	for _, n := range c.nics {
		all = append(all, n.address.Addr())
	}
	return all
}

// parseCommandLine reads the words that are for us. Unknown keys are metadata that another
// guest's program may know, so they are no error.
func parseCommandLine(line string) (config, error) {
	c := config{hostname: "guest"}
	var errs []error
	for _, word := range splitWords(line) {
		key, value, _ := strings.Cut(word, "=")
		key, ours := strings.CutPrefix(key, "heliotrope.")
		if !ours {
			continue
		}
		if err := c.set(key, value); err != nil {
			errs = append(errs, fmt.Errorf("heliotrope.%s: %w", key, err))
		}
	}
	return c, errors.Join(errs...)
}

func (c *config) set(key, value string) error {
	number := func(into *int, most int) error {
		n, err := strconv.Atoi(value)
		if err != nil || n < 0 || n > most {
			return fmt.Errorf("%q is no number between 0 and %d", value, most)
		}
		*into = n
		return nil
	}
	switch key {
	case "nic":
		n, err := parseNIC(value)
		c.nics = append(c.nics, n)
		return err
	case "hostname":
		if value == "" || len(value) > 63 {
			return fmt.Errorf("%q is no host name", value)
		}
		c.hostname = value
	case "workingset_mib":
		err := number(&c.workingSetPages, 1<<20)
		c.workingSetPages *= 1 << 20 / pageSize
		return err
	case "dirty_pages_per_s":
		return number(&c.dirtyRate, maxRate)
	case "disk_writes_per_s":
		return number(&c.diskRate, maxRate)
	case "peer":
		for _, p := range strings.Split(value, ",") {
			if _, _, err := net.SplitHostPort(p); err != nil {
				return err
			}
			c.peers = append(c.peers, p)
		}
	}
	return nil
}

// splitWords splits as the kernel does: at spaces, except between double quotes, which go away.
func splitWords(line string) []string {
	var words []string
	var word strings.Builder
	quoted := false
	flush := func() {
		if word.Len() > 0 {
			words = append(words, word.String())
			word.Reset()
		}
	}
	for _, r := range line {
		switch {
		case r == '"':
			quoted = !quoted
		case !quoted && (r == ' ' || r == '\t' || r == '\n'):
			flush()
		default:
			word.WriteRune(r)
		}
	}
	flush()
	return words
}

func parseNIC(value string) (nic, error) {
	part := strings.Split(value, ",")
	if len(part) != 4 {
		return nic{}, fmt.Errorf("%q is not <mac>,<address>/<length>,<gateway>,<mtu>", value)
	}
	mac, err := net.ParseMAC(part[0])
	if err != nil || len(mac) != 6 {
		return nic{}, fmt.Errorf("%q is no MAC address", part[0])
	}
	n := nic{mac: mac.String()}
	if n.address, err = netip.ParsePrefix(part[1]); err != nil {
		return nic{}, err
	}
	if part[2] != "" {
		if n.gateway, err = netip.ParseAddr(part[2]); err != nil {
			return nic{}, err
		}
		if n.gateway.Is4() != n.address.Addr().Is4() {
			return nic{}, fmt.Errorf("%v is no gateway for %v", n.gateway, n.address)
		}
	}
	if part[3] != "" {
		if n.mtu, err = strconv.Atoi(part[3]); err != nil || n.mtu < 68 || n.mtu > 65535 {
			return nic{}, fmt.Errorf("%q is no MTU", part[3])
		}
	}
	return n, nil
}
