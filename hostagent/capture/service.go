package capture

import (
	"slices"

	"heliotrope/scheduler/traffic"
)

// ephemeral is where Linux begins to take ports of those who ask (ip_local_port_range).
const ephemeral = 32768

// highServices are ports of well-known servers among the ephemeral ones.
var highServices = []uint16{33060, 50000, 50010, 50051, 50060, 50070, 50075, 51820, 61616}

// servicePort tells from two ports alone which one answers; 0: neither tells.
func servicePort(a, b uint16) uint16 {
	low, high := min(a, b), max(a, b)
	switch {
	case low < ephemeral || slices.Contains(highServices, low):
		return low
	case slices.Contains(highServices, high):
		return high
	}
	return 0
}

// service is the class of what went from a port to another one, and whether it was an
// answer. server is the port that a SYN was sent to, 0 where none was seen.
func service(protocol uint8, src, dst, server uint16) (traffic.Service, bool) {
	s := traffic.Service{Protocol: protocol, Port: server}
	if server == 0 {
		s.Port = servicePort(src, dst)
	}
	return s, s.Port != 0 && src == s.Port && dst != s.Port
}
