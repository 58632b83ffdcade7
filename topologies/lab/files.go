package lab

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"heliotrope"
	"heliotrope/topologies/lab/node"
)

const (
	nsswitchConf = "passwd: files\ngroup: files\nshadow: files\nhosts: files\n"

	// Security labels, cgroups and libvirt's own mount namespaces do not go together
	// with a machine that is a namespace itself.
	qemuConf = `user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
`
)

// writeFiles makes the node's directory and the files in it.
func writeFiles(p plan, peer *heliotrope.Peer, controller heliotrope.Controller, lab string) error {
	files := map[string]string{
		"hostname": p.Node + "\n", "hosts": p.Hosts, "nsswitch.conf": nsswitchConf,
	}
	switch p.Kind {
	case KindHost:
		files["etc-libvirt/qemu.conf"] = qemuConf
		files["etc-libvirt/libvirtd.conf"] = fmt.Sprintf("host_uuid = %q\nauth_unix_rw = \"none\"\n", hostUUID(lab, p.Node))
		files["etc-libvirt/virtlogd.conf"] = ""
	case KindRouter:
		files["bird.conf"] = birdConf(p, peer, controller)
	}
	for _, dir := range node.Dirs {
		if err := os.MkdirAll(filepath.Join(p.Dir, dir), 0o755); err != nil {
			return fmt.Errorf("make node directory: %w", err)
		}
	}
	if err := os.MkdirAll(filepath.Join(p.Dir, "log"), 0o755); err != nil {
		return fmt.Errorf("make log directory: %w", err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(p.Dir, name), []byte(text), 0o600); err != nil {
			return fmt.Errorf("write node file: %w", err)
		}
	}
	for _, name := range node.Files {
		if err := os.Chmod(filepath.Join(p.Dir, name), 0o644); err != nil {
			return fmt.Errorf("open node file to all: %w", err)
		}
	}
	return nil
}

// birdConf is the router's BIRD. It learns where the underlays are from the kernel, where
// PID 1 keeps the static routes, and resolves the next hops of the public addresses
// through them. The controller dials.
func birdConf(p plan, peer *heliotrope.Peer, c heliotrope.Controller) string {
	var b strings.Builder
	fmt.Fprintf(&b, `log stderr all;
router id %s;
graceful restart wait 30;
protocol device { scan time 10; }
protocol direct { ipv4; interface "lan", "wan0"; }
protocol kernel {
	learn;
	persist;
	graceful restart on;
	scan time 10;
	ipv4 { import all; export where source = RTS_BGP; };
}
`, p.Address)
	if peer == nil {
		return b.String()
	}
	fmt.Fprintf(&b, "protocol bgp controller {\n\tlocal %s as %d;\n\tneighbor %s as %d;\n\tmultihop;\n\tpassive on;\n", p.Address, peer.AS, c.Address, c.AS)
	if peer.Password != "" {
		fmt.Fprintf(&b, "\tpassword %q;\n", peer.Password)
	}
	b.WriteString("\tgraceful restart on;\n\tipv4 { import all; export none; gateway recursive; };\n}\n")
	return b.String()
}

// hostUUID makes hosts differ for libvirt, which refuses to migrate to the same one.
func hostUUID(lab, node string) string {
	sum := sha256.Sum256([]byte(lab + "/" + node))
	sum[6], sum[8] = sum[6]&0x0f|0x40, sum[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", sum[0:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}

// labMAC is the address of a node's device; it depends on their names alone.
func labMAC(node, device string) heliotrope.MAC {
	sum := sha256.Sum256([]byte("lab/" + node + "/" + device))
	m := heliotrope.MAC(sum[:6])
	m[0] = m[0]&^0x03 | 0x02
	return m
}
