package topologies

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"heliotrope"
)

func (c *checker) networks() {
	for id, n := range sorted(c.t.Networks) {
		at := (*path)(nil).key("networks").key(string(id))
		c.name(at, string(id))
		number(c, at.key("vni"), n.VNI, 1, maxVNI)
		if before, ok := c.vnis[n.VNI]; ok && n.VNI != 0 {
			c.say(at.key("vni"), "every network has its own", "VNI %d is already %s", n.VNI, before)
		} else {
			c.vnis[n.VNI] = at.key("vni")
		}
		c.address(at.key("gateway"), n.Gateway, n.Subnet)
		least := minMTU4
		if n.Subnet.Addr().Is6() {
			least = minMTU6
		}
		if n.MTU < least || n.MTU > maxMTU {
			c.say(at.key("mtu"), fmt.Sprintf("use %d to %d: the underlay's 1500 less 50 for the tunnel", least, maxMTU),
				"MTU %d is out of range", n.MTU)
		}
		if n.Group != "" {
			c.name(at.key("group"), n.Group)
		}
		if n.Capture != "" && n.Capture != heliotrope.CaptureOff {
			c.say(at.key("capture"), "write capture: off (in quotes or not), or leave it out", "%s is not known", quote(n.Capture))
		}
	}
}

// maxSampling is one of so many packets, beyond which a second has too few to say anything.
const maxSampling = 65536

// captureSources are how packets can be counted.
var captureSources = []string{"packets", "ebpf", "counters", heliotrope.CaptureOff}

func (c *checker) capture() {
	at, s := (*path)(nil).key("capture"), c.t.Capture
	c.word(at.key("source"), s.Source, "sources", captureSources)
	number(c, at.key("budget"), s.Budget, 0, 1)
	number(c, at.key("sampling"), s.Sampling, 0, maxSampling)
}

func (c *checker) vms() {
	known := c.licences()
	for id, vm := range sorted(c.t.VMs) {
		at := (*path)(nil).key("vms").key(string(id))
		c.name(at, string(id))
		c.image(at.key("image"), vm.Image)
		number(c, at.key("cpus"), vm.CPUs, 1, maxCPUs)
		number(c, at.key("memory_mib"), vm.MemoryMiB, 16, maxMemoryMiB)
		refer(c, at.key("host"), vm.Host, "hosts", c.t.Hosts)
		if len(vm.NICs) == 0 {
			c.say(at.key("nics"), "give it one", "a VM without a NIC cannot be reached")
		}
		for i, nic := range vm.NICs {
			c.nic(at.key("nics").at(i), nic)
		}
		if vm.Tenant != "" {
			c.name(at.key("tenant"), string(vm.Tenant))
		}
		c.seats(at.key("licences"), vm.Licences, 1)
		for id := range sorted(vm.Licences) {
			refer(c, at.key("licences").key(string(id)), id, "licences", known)
		}
		number(c, at.key("interruption_usd"), vm.InterruptionUSD, 0, 1e6)
		c.metadata(at.key("metadata"), vm.Metadata)
	}
}

func (c *checker) nic(at *path, nic heliotrope.NIC) {
	refer(c, at.key("network"), nic.Network, "networks", c.t.Networks)
	n := c.t.Networks[nic.Network]
	c.mac(at.key("mac"), nic.MAC, at.String())
	if nic.Address.IsValid() && nic.Address == n.Gateway {
		c.say(at.key("address"), "the gateway answers at every host", "%s is the gateway of network %s", nic.Address, nic.Network)
	} else {
		c.address(at.key("address"), nic.Address, n.Subnet)
	}
	if !nic.Public.IsValid() {
		return
	}
	switch in, inside := c.spaces.find(nic.Public); {
	case inside:
		c.say(at.key("public"), "public addresses are none of ours", "%s lies in %s, %s", nic.Public, in.at, in.prefix)
	case nic.Public.Is6() && !nic.Public.Is4In6() || nic.Address.Is6():
		c.say(at.key("public"), "", "a public address and the address it stands for are IPv4")
	default:
		c.address(at.key("public"), nic.Public, netip.Prefix{})
	}
}

// image checks the name of an image: that of a directory on the hosts, or of one in their
// store, of which NAME@3 is the third version.
func (c *checker) image(at *path, image string) {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	whole := image
	image, version, exact := strings.Cut(image, "@")
	n, err := strconv.Atoi(version)
	switch {
	case exact && (err != nil || n < 1):
		c.say(at, "write NAME@1, NAME@2, or NAME for the newest", "%s is no version of an image", quote(whole))
	case image == "":
		c.say(at, "", "is missing")
	case len(image) > maxNameLength, strings.Trim(image, letters+"._-") != "", !strings.Contains(letters, image[:1]):
		c.say(at, "use letters, digits, and after the first . _ -", "%s is no name of an image", quote(image))
	}
}

// metadata checks what is given to a guest on its kernel command line, in which a
// double quote cannot be escaped.
func (c *checker) metadata(at *path, m map[string]string) {
	total := 0
	for k, v := range sorted(m) {
		at := at.key(k)
		total += len(k) + len(v)
		if k == "" || len(k) > maxNameLength || strings.Trim(k, "abcdefghijklmnopqrstuvwxyz0123456789_.-") != "" {
			c.say(at, "use a-z, 0-9, _ . and -", "%s is no key of metadata", quote(k))
		}
		if !utf8.ValidString(v) || strings.ContainsFunc(v, func(r rune) bool { return !unicode.IsGraphic(r) || r == '"' }) {
			c.say(at, `use printable characters other than "`, "%s cannot stand on a kernel command line", quote(v))
		}
	}
	if total > maxMetadata {
		c.say(at, "", "has %d bytes, more than the %d that a kernel command line has room for", total, maxMetadata)
	}
}
