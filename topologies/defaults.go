package topologies

import (
	"maps"
	"reflect"
	"slices"

	"heliotrope"
)

// Defaults are values for entries of a file that do not say otherwise.
type Defaults struct {
	Links    LinkDefaults    `yaml:"links,omitempty"`
	Hosts    HostDefaults    `yaml:"hosts,omitempty"`
	Networks NetworkDefaults `yaml:"networks,omitempty"`
	VMs      VMDefaults      `yaml:"vms,omitempty"`
}

// LinkDefaults are for links.
type LinkDefaults struct {
	Delay      heliotrope.Duration `yaml:"delay,omitempty"`
	Jitter     heliotrope.Duration `yaml:"jitter,omitempty"`
	Loss       float64             `yaml:"loss,omitempty"`
	Rate       heliotrope.BitRate  `yaml:"rate,omitempty"`
	Queue      heliotrope.Duration `yaml:"queue,omitempty"`
	PricePerGB float64             `yaml:"price_per_gb,omitempty"`
	ImagesRate heliotrope.BitRate  `yaml:"images_rate,omitempty"`
}

// HostDefaults are for hosts.
type HostDefaults struct {
	CPUs      int `yaml:"cpus,omitempty"`
	MemoryMiB int `yaml:"memory_mib,omitempty"`
}

// NetworkDefaults are for networks.
type NetworkDefaults struct {
	MTU int `yaml:"mtu,omitempty"`
}

// VMDefaults are for VMs.
type VMDefaults struct {
	Image     string `yaml:"image,omitempty"`
	CPUs      int    `yaml:"cpus,omitempty"`
	MemoryMiB int    `yaml:"memory_mib,omitempty"`
}

// builtin are the defaults where the file has none.
func builtin() Defaults {
	return Defaults{
		Networks: NetworkDefaults{MTU: maxMTU},
		VMs:      VMDefaults{Image: "guest", CPUs: 1, MemoryMiB: 256},
	}
}

// derived are required fields that a file may leave out, because they follow from others.
var derived = map[string]bool{"Site.Router": true}

// fill sets the fields of an entry that have a default and are zero.
func (d Defaults) fill(entry reflect.Value) {
	var from reflect.Value
	switch entry.Interface().(type) {
	case heliotrope.Link:
		from = reflect.ValueOf(d.Links)
	case heliotrope.Host:
		from = reflect.ValueOf(d.Hosts)
	case heliotrope.Network:
		from = reflect.ValueOf(d.Networks)
	case heliotrope.VM:
		from = reflect.ValueOf(d.VMs)
	default:
		return
	}
	for sf := range from.Type().Fields() {
		if field := entry.FieldByName(sf.Name); field.IsZero() {
			field.Set(from.FieldByIndex(sf.Index))
		}
	}
}

// Complete returns t with its zero values replaced as Parse would replace fields that are
// left out of a file. It shares nothing with t that it changes.
func Complete(t heliotrope.Topology) heliotrope.Topology {
	t.Sites, t.Networks, t.VMs = maps.Clone(t.Sites), maps.Clone(t.Networks), maps.Clone(t.VMs)
	for id, n := range t.Networks {
		builtin().fill(reflect.ValueOf(&n).Elem())
		t.Networks[id] = n
	}
	for id, vm := range t.VMs {
		vm.NICs = slices.Clone(vm.NICs)
		builtin().fill(reflect.ValueOf(&vm).Elem())
		t.VMs[id] = vm
	}
	derive(&t)
	return t
}

// derive fills what follows from other fields.
func derive(t *heliotrope.Topology) {
	for id, s := range t.Sites {
		if !s.Router.IsValid() && s.Underlay.IsValid() {
			s.Router = s.Underlay.Masked().Addr().Next()
			t.Sites[id] = s
		}
	}
	for id, vm := range t.VMs {
		for i := range vm.NICs {
			if vm.NICs[i].MAC.IsZero() {
				vm.NICs[i].MAC = heliotrope.NICMAC(id, i)
			}
		}
	}
}
