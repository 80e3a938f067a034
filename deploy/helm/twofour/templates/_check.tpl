{{- /* What the schema cannot say: values that do not fit together. The fact, then the remedy. */ -}}
{{- define "twofour.check" -}}
{{- include "twofour.checkImages" . -}}
{{- include "twofour.checkSecrets" . -}}
{{- if .Values.serve -}}
{{- include "twofour.checkModel" . -}}
{{- include "twofour.checkEngine" . -}}
{{- include "twofour.checkWords" . -}}
{{- include "twofour.checkScaling" . -}}
{{- $_ := include "twofour.graceSeconds" . -}}
{{- else if not .Values.prune.enabled -}}
{{- fail "serve and prune.enabled are both off, so there is nothing to install; switch one on" -}}
{{- end -}}
{{- if .Values.prune.enabled -}}
{{- include "twofour.checkPrune" . -}}
{{- end -}}
{{- end -}}

{{- define "twofour.checkImages" -}}
{{- if not .Values.image.repository -}}
{{- fail "image.repository is not given; give the place of the image that deploy/docker builds" -}}
{{- end -}}
{{- if and .Values.serve .Values.router.enabled (not .Values.router.image.repository) -}}
{{- fail "router.image.repository is not given; give the place of the image of deploy/docker/Dockerfile.router" -}}
{{- end -}}
{{- range list .Values.image .Values.router.image -}}
{{- if eq .tag "latest" -}}
{{- fail "the tag latest is another image tomorrow; give a version, or image.digest" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "twofour.checkModel" -}}
{{- if not .Values.keys.existingSecret -}}
{{- fail "keys.existingSecret is not given; make one: kubectl create secret generic NAME --from-file=api_keys" -}}
{{- end -}}
{{- with .Values.model -}}
{{- $given := len (compact (list .existingClaim .newClaim.size .image.reference)) -}}
{{- if ne $given 1 -}}
{{- fail (printf "model names %d places; give exactly one of model.existingClaim, model.newClaim.size and model.image.reference" $given) -}}
{{- end -}}
{{- if and .image.reference (semverCompare "<1.33.0-0" $.Capabilities.KubeVersion.Version) -}}
{{- fail (printf "model.image.reference needs Kubernetes 1.33, and this is %s; give a claim" $.Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "twofour.checkEngine" -}}
{{- $gpus := .Values.gpu.count | int -}}
{{- $ranks := .Values.vllm.tensorParallelSize | int -}}
{{- with .Values.embedded -}}
{{- $own := or .threads (ne .kernels "auto") (ne .lmHead "checkpoint") (ne .denseValues "checkpoint") -}}
{{- if and (eq $.Values.engine "vllm") $own -}}
{{- fail "values of embedded have no counterpart in vLLM; leave them out, or store int8 in the checkpoint (twofour prune --lm-head int8)" -}}
{{- end -}}
{{- if and $gpus (or (ne .lmHead "checkpoint") (ne .denseValues "checkpoint")) -}}
{{- fail "embedded.lmHead and embedded.denseValues are for CPUs, and gpu.count is not 0; leave them out" -}}
{{- end -}}
{{- if and $gpus (eq .kernels "cpu") -}}
{{- fail "embedded.kernels is cpu, and gpu.count is not 0; leave one out" -}}
{{- end -}}
{{- if and (not $gpus) (has .kernels (list "triton" "cusparselt")) -}}
{{- fail (printf "embedded.kernels is %s, which needs a GPU, and gpu.count is 0; give gpu.count 1" .kernels) -}}
{{- end -}}
{{- end -}}
{{- if eq .Values.engine "embedded" -}}
{{- if or .Values.vllm.args (gt $ranks 1) -}}
{{- fail "values of vllm are given, and the engine is embedded; give engine vllm and its image" -}}
{{- end -}}
{{- if gt $gpus 1 -}}
{{- fail (printf "gpu.count is %d, and the embedded engine takes one GPU; give engine vllm, or more replicas" $gpus) -}}
{{- end -}}
{{- else if and $gpus (ne $gpus $ranks) -}}
{{- fail (printf "vllm.tensorParallelSize is %d and gpu.count %d; each rank has one GPU, so give the same" $ranks $gpus) -}}
{{- end -}}
{{- end -}}

{{- /* Flags that the chart gives itself, for probes, Services and the time of an end follow from them. */ -}}
{{- define "twofour.checkWords" -}}
{{- $own := dict "--host" "networkPolicy.clients" "--port" "service.port" "--engine" "engine" "--api-key-file" "keys" "--served-model-name" "model.name" "--drain-s" "drain.drainSeconds" "--pre-drain-s" "drain.preStopSeconds" "--ssl-certfile" "TLS in front of it" "--ssl-keyfile" "TLS in front of it" "--protect-metrics" "networkPolicy.monitoringNamespace" -}}
{{- range .Values.extraArgs -}}
{{- $flag := splitList "=" . | first -}}
{{- range $name, $instead := $own -}}
{{- if and (hasPrefix "--" $flag) (ne $flag "--") (hasPrefix $flag $name) -}}
{{- fail (printf "extraArgs has %s, which the chart gives itself; use %s" $flag $instead) -}}
{{- end -}}
{{- end -}}
{{- if eq . "--" -}}
{{- fail "extraArgs has --; what is for vLLM stands in vllm.args" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Values of a release and words of a pod can be read by many. */ -}}
{{- define "twofour.checkSecrets" -}}
{{- range concat .Values.vllm.args .Values.router.extraArgs -}}
{{- if hasPrefix "--api-key" . -}}
{{- fail (printf "%s would show a key to everybody who may read pods; put keys into keys.existingSecret" (splitList "=" . | first)) -}}
{{- end -}}
{{- end -}}
{{- range .Values.extraEnv -}}
{{- if and .value (regexMatch "KEY|TOKEN|PASSWORD|SECRET" .name) -}}
{{- fail (printf "extraEnv has a value for %s, which everybody may read who may read pods; give valueFrom.secretKeyRef" .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "twofour.checkScaling" -}}
{{- with .Values.autoscaling -}}
{{- if and (ne .kind "none") (gt (int .min) (int .max)) -}}
{{- fail (printf "autoscaling.min is %d and autoscaling.max %d; give a larger max" (int .min) (int .max)) -}}
{{- end -}}
{{- if and (eq .kind "keda") (not .prometheusUrl) -}}
{{- fail "autoscaling.prometheusUrl is not given, and KEDA asks it; give it, as http://prometheus-operated.monitoring:9090" -}}
{{- end -}}
{{- end -}}
{{- with .Values.rollout -}}
{{- if and (eq (int .maxUnavailable) 0) (eq (int .maxSurge) 0) -}}
{{- fail "rollout.maxUnavailable and rollout.maxSurge are both 0, so no rollout can begin; give one of them 1" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "twofour.checkPrune" -}}
{{- with .Values.prune -}}
{{- if not .source.existingClaim -}}
{{- fail "prune.source.existingClaim is not given; give the claim in which the dense model is" -}}
{{- end -}}
{{- if not (or .target.path $.Values.model.path) -}}
{{- fail "prune makes a new folder, and has no name for it; give model.path, or prune.target.path" -}}
{{- end -}}
{{- if not (or .target.existingClaim (include "twofour.modelClaim" $)) -}}
{{- fail "prune has no claim to write to; give prune.target.existingClaim, or a claim of model" -}}
{{- end -}}
{{- end -}}
{{- end -}}
