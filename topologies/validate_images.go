package topologies

import (
	"fmt"
	"slices"
	"strings"

	"heliotrope"
)

const (
	maxWindows   = 50 // of an image: they are looked through again and again
	minImageRate = heliotrope.BitRate(64_000)
	maxImageRate = heliotrope.BitRate(1e15)
)

var imagePolicies = []string{heliotrope.ImageEverywhere, heliotrope.ImageFollow, heliotrope.ImageOnDemand}

// imagesRate checks what images may take of a link together.
func (c *checker) imagesRate(at *path, l heliotrope.Link) {
	if l.ImagesRate == 0 {
		return
	}
	number(c, at, l.ImagesRate, minImageRate, maxImageRate)
	if l.Rate > 0 && l.ImagesRate > l.Rate {
		c.say(at, fmt.Sprintf("use at most %v, or leave it out", l.Rate), "%v is more than the link's rate, %v", l.ImagesRate, l.Rate)
	}
}

func (c *checker) images() {
	for id, p := range sorted(c.t.Images) {
		at := (*path)(nil).key("images").key(string(id))
		if image, version, exact := strings.Cut(string(id), "@"); exact {
			c.say(at, "write "+image, "a policy is about an image's newest version, and not about version %s", quote(version))
			continue
		}
		c.image(at, string(id))
		c.word(at.key("policy"), p.Policy, "policies", imagePolicies)
		for i, s := range p.Sites {
			if refer(c, at.key("sites").at(i), s, "sites", c.t.Sites) && slices.Contains(p.Sites[:i], s) {
				c.say(at.key("sites").at(i), "", "%s stands here twice", s)
			}
		}
		c.word(at.key("priority"), p.Priority, "priorities", heliotrope.ImagePriorities)
		if p.Rate != 0 {
			number(c, at.key("rate"), p.Rate, minImageRate, maxImageRate)
		}
		if len(p.Windows) > maxWindows {
			c.say(at.key("windows"), "", "has %d times: at most %d", len(p.Windows), maxWindows)
		}
		if demand := p.Policy == "" || p.Policy == heliotrope.ImageOnDemand; demand && len(p.Sites) > 0 {
			c.say(at.key("sites"), "write policy: everywhere, or policy: follow", "says where, of an image that comes as VMs read it")
		}
	}
}
