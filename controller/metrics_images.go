package controller

import (
	"github.com/prometheus/client_golang/prometheus"

	"heliotrope/controller/world"
)

// What agents say of disks over images of a store, by host. The counters begin anew with the
// host's server of disks.
var (
	descImageHits    = prometheus.NewDesc("heliotrope_image_cache_hits_total", "Reads that were answered by what the host had of an image.", []string{"host"}, nil)
	descImageChunks  = prometheus.NewDesc("heliotrope_image_chunks_total", "Chunks that came: a guest waited for one on demand.", []string{"host", "kind"}, nil)
	descImageFetched = prometheus.NewDesc("heliotrope_image_fetched_bytes_total", "Content that came from the store.", []string{"host"}, nil)
	descImageNear    = prometheus.NewDesc("heliotrope_image_near_bytes_total", "Content of a version that another one had which was here, and that did not come from the store.", []string{"host"}, nil)
	descImagePassed  = prometheus.NewDesc("heliotrope_image_passed_bytes_total", "Content that other hosts passed on to it.", []string{"host"}, nil)
	descImageFailed  = prometheus.NewDesc("heliotrope_image_fetches_failed_total", "Chunks that did not come.", []string{"host"}, nil)
	descImageEvicted = prometheus.NewDesc("heliotrope_image_caches_evicted_total", "Caches of images that were dropped for room.", []string{"host"}, nil)
	descImageVolumes = prometheus.NewDesc("heliotrope_image_volumes", "Disks over images of the store.", []string{"host"}, nil)
	descImageKept    = prometheus.NewDesc("heliotrope_image_kept_bytes", "What is kept of disks that moved away, in case they come back.", []string{"host"}, nil)
	descImageSpared  = prometheus.NewDesc("heliotrope_image_spared_bytes_total", "Of disks that moved away: what their destinations had.", []string{"host"}, nil)
	descImageCache   = prometheus.NewDesc("heliotrope_image_cache_bytes", "What is kept of images of the store.", []string{"host"}, nil)
	descImagePolicy  = prometheus.NewDesc("heliotrope_image_policy_hosts", "Hosts that are to have the newest version of an image by its policy, for each image, by what they have of it.", []string{"state"}, nil)
	descScrubRead    = prometheus.NewDesc("heliotrope_image_store_scrubbed_bytes_total", "Bytes of the image store's packs that were read to see whether they are what was written.", nil, nil)
	descScrubDamaged = prometheus.NewDesc("heliotrope_image_store_damaged", "Packs, manifests, versions and chunks of the image store that are not what was written.", nil, nil)
	descScrubEnded   = prometheus.NewDesc("heliotrope_image_store_scrubbed_timestamp_seconds", "When all of the image store had been read last, since 1970; 0: never.", nil, nil)
	descImageOrders  = prometheus.NewDesc("heliotrope_image_policy_orders_total", "Orders that policies had hosts given, by whether the host took it.", []string{"result"}, nil)
)

var imageDescs = []*prometheus.Desc{descImageHits, descImageChunks, descImageFetched, descImageNear, descImagePassed, descImageFailed, descImageEvicted, descImageVolumes, descImageCache,
	descImageKept, descImageSpared, descImagePolicy, descImageOrders, descScrubRead, descScrubDamaged, descScrubEnded}

func (c *Controller) collectImages(ch chan<- prometheus.Metric, now *world.View) {
	if c.images != nil {
		hosts, given, failed := c.images.Distribution()
		for state, n := range hosts {
			ch <- prometheus.MustNewConstMetric(descImagePolicy, prometheus.GaugeValue, float64(n), state)
		}
		ch <- prometheus.MustNewConstMetric(descImageOrders, prometheus.CounterValue, float64(given-failed), "ok")
		ch <- prometheus.MustNewConstMetric(descImageOrders, prometheus.CounterValue, float64(failed), "error")
		read, damaged, ended := c.images.Scrubbed()
		ch <- prometheus.MustNewConstMetric(descScrubRead, prometheus.CounterValue, float64(read))
		ch <- prometheus.MustNewConstMetric(descScrubDamaged, prometheus.GaugeValue, float64(damaged))
		ch <- prometheus.MustNewConstMetric(descScrubEnded, prometheus.GaugeValue, float64(max(0, ended.Unix())))
	}
	for id, h := range now.Hosts {
		s := h.Status.Images
		if s == nil {
			continue
		}
		tell := func(d *prometheus.Desc, kind prometheus.ValueType, value int64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, kind, float64(value), append([]string{string(id)}, labels...)...)
		}
		tell(descImageHits, prometheus.CounterValue, s.Hits)
		tell(descImageChunks, prometheus.CounterValue, s.Demand, "demand")
		tell(descImageChunks, prometheus.CounterValue, s.Background, "background")
		tell(descImageFetched, prometheus.CounterValue, s.Fetched)
		tell(descImageNear, prometheus.CounterValue, s.Near)
		tell(descImagePassed, prometheus.CounterValue, s.FromHosts)
		tell(descImageFailed, prometheus.CounterValue, s.Failed)
		tell(descImageEvicted, prometheus.CounterValue, s.Evicted)
		tell(descImageVolumes, prometheus.GaugeValue, int64(len(s.Volumes)))
		tell(descImageCache, prometheus.GaugeValue, s.Used)
		tell(descImageKept, prometheus.GaugeValue, s.Kept)
		tell(descImageSpared, prometheus.CounterValue, s.Spared)
	}
}
